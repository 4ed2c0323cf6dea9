"""docs/ci.md is what happens when it is followed: its commands are run, its settings are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from ckptdoctor.contract.accepts import ACCEPTABLE
from ckptdoctor.rules import find_rule, rules
from ckptdoctor.settings.model import Accept, Model, Settings, parse_settings
from tests.contract.repo import LIFE, Repo
from tests.contract.scene import load_class
from tests.real.test_readme import fences, shell, shown

PAGE = Path(__file__).parents[2] / "docs" / "ci.md"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project before ckptdoctor, with a published checkpoint."""
    for name, value in (
        ("AUTHOR_NAME", "a"),
        ("AUTHOR_EMAIL", "a@b"),
        ("COMMITTER_NAME", "a"),
        ("COMMITTER_EMAIL", "a@b"),
    ):
        monkeypatch.setenv(f"GIT_{name}", value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    root = tmp_path / "project"
    shutil.copytree(LIFE / "start", root, ignore=shutil.ignore_patterns("ckpt"))
    repo = Repo(root)
    repo.git("init", "-q", "-b", "main")
    torch.save(load_class(root / "model.py", "Net")().state_dict(), root / "net_1.0.pth")
    (root / ".git" / "info").mkdir(exist_ok=True)
    (root / ".git" / "info" / "exclude").write_text("*.pth\n")
    return root


def test_commands_print_what_is_shown(scene: Path) -> None:
    text, wrong = PAGE.read_text(), []
    for example in shown(text):
        printed = shell(example.command, scene)
        if not example.fits(printed):
            wrong.append("\n".join([f"$ {example.command}", *printed]))
            old, new = ("\n".join([f"$ {example.command}", *lines]) for lines in (example.lines, printed))
            text = text.replace(old, new)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(text)
    assert not wrong, "docs/ci.md shows something else than\n\n" + "\n\n".join(wrong)


def test_settings_that_are_shown_are_read() -> None:
    first, accept = (match[2] for match in fences(PAGE.read_text(), "toml"))
    settings = parse_settings(first + accept, "docs/ci.md")
    assert [m.name for m in settings.models] == ["net"]
    assert find_rule(settings.accept[0].rule).code in ACCEPTABLE


def test_every_setting_and_code_is_named() -> None:
    text = PAGE.read_text()
    names = {f.alias or n for m in (Settings, Model, Accept) for n, f in m.model_fields.items()} - {
        "model",
        "accept",
    }
    assert not {n for n in names if f"`{n}`" not in text and f"\n{n} = " not in text}
    codes = {r.code for r in rules() if r.code.startswith("CKD7")}
    assert not {c for c in codes if c not in text}
