"""Names from files are text by strangers: in no output does any of it act."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptdoctor
from ckptdoctor.diagnosis import Diagnosis
from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.keys import escape
from ckptdoctor.trees import ParamTree, TensorSpec
from tests.trust.amount import examples
from tests.trust.renderers import RENDERERS, safe_lines

NAMES = (
    "\x1b[31mred\x1b[2J", "\x9b1A", "a\nb", "a\rb", "a\tb", "\x00", "\x7f", "\u202egnp.exe", "\u2066a\u2069", "\u200b", "\ufeff",
    "\u2028", "\ue000", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "](x)[", "&amp;", "]]>",
    '"', "'", '"""', "'''", "\\", "\\\\n", "\\x1b", "${HOME}", "$(touch canary)", "`touch canary`", "; touch canary #", "| touch canary",
    "'; touch canary; '", '"); import os #', "{i}", "{0..3}", "{{x}}", "%s", "%0A::error::x", "::error file=x::y", "|", "**", "*", "?", "[a-z]", "!",
    "#", "=", "= 1\n[evil]", "--drop", "-o", "k" * 10_000, " ", "  a  ", "größe", "编码器", "👩‍👩‍👧", "NUL", "__proto__", "..", "a..b", ".a", "a.",
)  # fmt: skip

FILES = ("plain", "prefix", "renamed", "missing", "unexpected", "mismatched", "envelope", "decided")


def found_in(names: list[str], how: str, folder: Path) -> Diagnosis:
    """A diagnosis of a file with these names, in which this is wrong."""
    keys = [f"{n}.weight" for n in names] + ["rest.weight", "rest.bias"]
    shapes = {k: (i % 5 + 2, 3) for i, k in enumerate(keys)}
    state = {k: torch.ones(s) for k, s in shapes.items()}
    model = ParamTree({k: TensorSpec(s) for k, s in shapes.items()})
    value: object = state
    decisions: list[str] = []
    if how == "prefix":
        value = {f"{names[0]}.{k}": v for k, v in state.items()}
    elif how == "renamed":
        value = {
            k if k.startswith("rest") else f"old.{i}.weight": v for i, (k, v) in enumerate(state.items())
        }
    elif how == "missing":
        value = {k: v for k, v in state.items() if k != keys[0]}
    elif how == "unexpected":
        value = {**state, f"{names[0]}more.weight": torch.ones(2)}
    elif how == "mismatched":
        value = {**state, keys[0]: torch.ones(9, 3)}
    elif how == "envelope":
        value = {names[0]: state, names[-1] + "2": {k: v * 2 for k, v in state.items()}, "epoch": names[0]}
    elif how == "decided":
        more = f"{names[0]}more.weight"
        value = {**{k: v for k, v in state.items() if k != keys[0]}, more: torch.ones(2)}
        decisions = [f"reinit={escape(keys[0])}", f"drop={escape(more)}"]
    torch.save(value, folder / "a.pth")
    return ckptdoctor.diagnose(model, folder / "a.pth", decisions=decisions)


def outputs(found: Diagnosis) -> None:
    for renderer in RENDERERS.values():
        renderer.check(renderer.render(found), found)
    try:
        found.raise_for_verdict()
    except CkptDoctorError as error:
        safe_lines(str(error))


@pytest.mark.parametrize("how", FILES)
def test_hostile_names_act_in_no_output(how: str, tmp_path: Path) -> None:
    for first in range(0, len(NAMES), 6):
        outputs(found_in(list(NAMES[first : first + 6]), how, tmp_path))


@examples(40)
@given(
    st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4, unique=True), st.sampled_from(FILES)
)
def test_no_text_at_all_acts_in_any_output(names: list[str], how: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outputs(found_in(names, how, Path(folder)))


@pytest.mark.parametrize("how", ["missing", "unexpected", "mismatched", "envelope"])
def test_commands_that_are_pasted_run_nothing_of_a_name(how: str, tmp_path: Path) -> None:
    commands = set()
    for first in range(0, len(NAMES), 4):
        found = found_in(list(NAMES[first : first + 4]), how, tmp_path)
        commands |= {h.command for d in found.diagnostics for h in d.helps}
    assert any("canary" in c for c in commands)
    script = "\n".join(f"printf '%s\\n' {c} >/dev/null || exit 1" for c in sorted(commands))
    before = {p.name for p in tmp_path.iterdir()}
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {p.name for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", [n for n in NAMES if n.isprintable() and "." not in n])
def test_an_offered_decision_speaks_of_the_named_key_only(name: str, tmp_path: Path) -> None:
    """``*`` in a name is no wildcard: dropping what was offered drops that key and no other."""
    import shlex

    found = found_in([name, "other"], "unexpected", tmp_path)
    drops = [h.command for d in found.diagnostics for h in d.helps if h.command.startswith("--drop")]
    assert len(drops) == 1
    words = shlex.split(drops[0])
    model = ParamTree(dict(found.target.tree.specs))
    after = ckptdoctor.diagnose(model, tmp_path / "a.pth", decisions=[f"drop={words[1]}"])
    assert after.alignment is not None
    dropped = {k for k, u in after.alignment.unused.items() if u.decided}
    assert dropped == {f"{name}more.weight"}
