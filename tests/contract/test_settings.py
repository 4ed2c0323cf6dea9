"""Settings: what may stand there, and on which line something is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.contract.units import open_project
from ckptdoctor.errors import SettingsError
from ckptdoctor.settings.lines import find_line, value_lines
from ckptdoctor.settings.model import parse_settings

HEAD = '[project]\nname = "p"\n\n[tool.ckptdoctor]\n'
MODEL = '[[tool.ckptdoctor.model]]\nname = "net"\nentry = "model.py:Net"\n'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD + 'compatibility = "backwards"\n', 5, "`compatibility`"),
        (HEAD + 'kompatibility = "full"\n', 5, "there is no such setting"),
        (HEAD + "consumers = []\n", 5, "`consumers`"),
        (HEAD + 'consumers = [\n  "torch-strict",\n  "tf",\n]\n', 5, "`consumers`"),
        (HEAD + 'level = "loose"\n', 5, "`level"),
        (HEAD + 'level = ["a{"]\n', 5, "pattern"),
        (HEAD + MODEL + MODEL, 4, "two models are called `net`"),
        (HEAD + MODEL + 'kwargs = { since = 2026-01-01 }\n', 5, "plain JSON"),
        (HEAD + MODEL + "timeout = 0\n", 8, "`model.timeout`"),
        (HEAD + MODEL + '[tool.ckptdoctor.model.variants]\n"a b" = {}\n', 9, "String should match"),
        (HEAD + MODEL + 'releases = ["1.0", "../x"]\n', 8, "`model.releases`"),
        (HEAD + '[[tool.ckptdoctor.model]]\nname = "net"\n', 5, "`model.entry`: Field required"),
        (HEAD + MODEL + '\n[[tool.ckptdoctor.accept]]\nreason = "r"\nowner = "o"\nuntil = "soon"\n', 12, "until"),
        (HEAD + MODEL + '\n[[tool.ckptdoctor.accept]]\nowner = "o"\nuntil = 2030-01-01\n', 9, "reason"),
        (HEAD + 'renamed_from = { "a.*" = "b" }\n', 5, "as many"),
        (HEAD + "x = \n", 0, "is no TOML"),
    ],
)  # fmt: skip
def test_an_error_names_file_and_line(text: str, line: int, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(text, "sub/pyproject.toml")
    message = str(error.value)
    assert words in message
    assert message.startswith(f"sub/pyproject.toml:{line}: " if line else "sub/pyproject.toml is no TOML"), (
        message
    )


def test_several_errors_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(HEAD + 'compatibility = "x"\nfolder = 3\n', "p.toml")
    assert {line.partition(": ")[0] for line in str(error.value).splitlines()} == {"p.toml:5", "p.toml:6"}


VALUES = st.sampled_from(
    [
        "1",
        '"a # [b]"',
        "'''\nx = 1\n[y]\n'''",
        '"""\n[[z]]\n"""',
        "[\n 1, # ]\n 2,\n]",
        "{ q = [1] }",
        "[]",
        "2030-01-01",
    ]
)
KEYS = st.sampled_from(["a", "b", '"c d"', "e.f", "'g'"])


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, dict[tuple[str | int, ...], int]]:
    """A TOML text and the line of each header and key, known because it was put there."""
    lines: list[str] = []
    where: dict[tuple[str | int, ...], int] = {}
    counts = {"t": 0, "u": 0}
    for _ in range(draw(st.integers(0, 5))):
        lines += ["# comment [x]"] * draw(st.integers(0, 2))
        kind = draw(st.sampled_from(["t", "u"]))
        path: tuple[str | int, ...] = ("top", kind, counts[kind])
        where[path] = len(lines) + 1
        counts[kind] += 1
        lines.append(f"[[top.{kind}]]")
        for key in draw(st.lists(KEYS, unique=True, max_size=4)):
            parts = [p.strip("\"'") for p in ([key] if key[0] in "\"'" else key.split("."))]
            where[(*path, *parts)] = len(lines) + 1
            lines += f"{key} = {draw(VALUES)}".split("\n")
    return "\n".join(lines) + "\n", where


@given(texts())
def test_law_every_header_and_key_has_its_line(made: tuple[str, dict[tuple[str | int, ...], int]]) -> None:
    text, where = made
    tomllib.loads(text)
    found = value_lines(text)
    assert {path: found.get(path) for path in where} == where
    assert all(find_line(text, (*path, "deeper", 0)) == line for path, line in where.items())


def test_units_are_variants(tmp_path: Path) -> None:
    variants = 'kwargs = { a = 1, b = 1 }\nvariants = { small = { b = 2 }, large = {} }\nlevel = "weights"\n'
    (tmp_path / "pyproject.toml").write_text(HEAD + 'folder = "contract"\n' + MODEL + variants)
    small, large = open_project(tmp_path).units
    assert (small.name, dict(small.kwargs)) == ("net.small", {"a": 1, "b": 2})
    assert (large.name, dict(large.kwargs)) == ("net.large", {"a": 1, "b": 1})
    assert small.lock == "contract/net.small.tree"
    assert small.release("1.0") == "contract/releases/net.small/1.0.tree"
    assert (small.level, small.compatibility) == ("weights", "backward")
    assert open_project(tmp_path).choose("net") and len(open_project(tmp_path).choose("net.large")) == 1
    with pytest.raises(SettingsError, match=r"there is `net\.small`, `net\.large`"):
        open_project(tmp_path).choose("other")


@pytest.mark.parametrize("text", ["", HEAD])
def test_a_project_without_a_model_is_not_fine(text: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"\[\[tool\.ckptdoctor\.model\]\]"):
        open_project(tmp_path)


@pytest.mark.parametrize("rule", ["stale-lock", "CKD702", "rewritten-migration"])
def test_what_is_mended_instead_cannot_be_accepted(rule: str, tmp_path: Path) -> None:
    from ckptdoctor.contract import check_project

    entry = f'[[tool.ckptdoctor.accept]]\nrule = "{rule}"\nreason = "r"\nowner = "o"\nuntil = 2999-01-01\n'
    (tmp_path / "pyproject.toml").write_text(HEAD + MODEL + entry)
    with pytest.raises(SettingsError, match=r"pyproject\.toml:9: .*cannot be accepted"):
        check_project(tmp_path, build=False)
