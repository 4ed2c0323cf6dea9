"""Declared facts: what the model, its project or a person says of old names goes before all evidence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ckptdoctor as ckd
from ckptdoctor.align import align
from ckptdoctor.decisions import parse_decisions
from ckptdoctor.errors import DecisionError, SettingsError
from ckptdoctor.trees import ParamTree, TensorSpec

OLD = {"alpha.weight": (8, 8), "omega.weight": (8, 8)}
NEW = {"first_net.weight": (8, 8), "other_net.weight": (8, 8)}
RENAMED = {"first_net.**": "omega.**", "other_net.**": "alpha.**"}


def tree(shapes: dict[str, tuple[int, ...]], **more: object) -> ParamTree:
    return ParamTree({k: TensorSpec(s) for k, s in shapes.items()}, **more)


def claims(source: ParamTree, target: ParamTree, *decisions: str) -> dict[str, str]:
    found = align(source, target, parse_decisions(decisions))
    return {m.target: m.sources[0] for m in found.matches.values() if m.status == "safe"}


def test_names_that_tell_nothing_are_decided_by_the_model() -> None:
    assert claims(tree(OLD), tree(NEW)) == {}
    want = {"first_net.weight": "omega.weight", "other_net.weight": "alpha.weight"}
    assert claims(tree(OLD), tree(NEW, renamed=RENAMED)) == want


def test_a_wrapper_does_not_hide_the_old_name() -> None:
    wrapped = tree({f"module.{k}": s for k, s in OLD.items()})
    found = claims(wrapped, tree(NEW, renamed=RENAMED))
    assert found == {"first_net.weight": "module.omega.weight", "other_net.weight": "module.alpha.weight"}


def test_a_newer_checkpoint_needs_no_old_names() -> None:
    assert claims(tree(NEW), tree(NEW, renamed=RENAMED)) == {k: k for k in NEW}


def test_a_declared_name_with_another_shape_is_not_taken() -> None:
    source = tree({"omega.weight": (9, 9), "alpha.weight": (8, 8)})
    assert "first_net.weight" not in claims(source, tree(NEW, renamed={"first_net.**": "omega.**"}))


def test_a_decision_goes_before_what_is_declared() -> None:
    found = claims(tree(OLD), tree(NEW, renamed=RENAMED), "rename=alpha.**=first_net.**")
    assert found["first_net.weight"] == "alpha.weight"


@pytest.mark.parametrize(
    "text", ["rename=nowhere=first_net.weight", "rename=alpha.weight=nowhere", "drop=none.**"]
)
def test_a_decision_that_fits_nothing_is_an_error(text: str) -> None:
    with pytest.raises(DecisionError):
        claims(tree(OLD), tree(NEW), text)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first_net = nn.Linear(8, 8, bias=False)
        self.other_net = nn.Linear(8, 8, bias=False)


class Declared(Net):
    ckptdoctor_renamed_from = RENAMED


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Declared()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({k: torch.randn(8, 8) for k in OLD}, tmp_path / "old.pth")
    return tmp_path / "old.pth"


def test_a_module_attribute_declares(saved: Path) -> None:
    model = Declared()
    ckd.auto_load(model, saved)
    assert torch.equal(model.first_net.weight, torch.load(saved)["omega.weight"])


def test_a_part_declares_relative_to_itself() -> None:
    assert ckd.snapshot(Outer()).renamed == {
        "inner.first_net.**": "inner.omega.**",
        "inner.other_net.**": "inner.alpha.**",
    }


SOURCE = """
import torch.nn as nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first_net = nn.Linear(8, 8, bias=False)
        self.other_net = nn.Linear(8, 8, bias=False)
"""


def test_the_project_declares(saved: Path) -> None:
    model = saved.parent / "model.py"
    model.write_text(SOURCE)
    assert ckd.diagnose(f"{model}:Net", saved).verdict == "undecided"
    (saved.parent / "pyproject.toml").write_text(
        '[tool.ckptdoctor.renamed_from]\n"first_net.**" = "omega.**"\n"other_net.**" = "alpha.**"\n'
    )
    found = ckd.diagnose(f"{model}:Net", saved)
    assert found.verdict == "repairable"
    assert found.alignment.matches["first_net.weight"].sources == ("omega.weight",)


def test_wrong_settings_name_the_file(saved: Path) -> None:
    model = saved.parent / "model.py"
    model.write_text(SOURCE)
    (saved.parent / "pyproject.toml").write_text("[tool.ckptdoctor]\nrenamed_from = 3\n")
    with pytest.raises(SettingsError, match=r"pyproject\.toml.*renamed_from"):
        ckd.diagnose(f"{model}:Net", saved)
