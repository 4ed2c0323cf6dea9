"""A reference checkpoint in the place of the model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptdoctor.errors import TargetError
from ckptdoctor.targets import load_target

W = {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)}
EMA = {"fc.weight": torch.zeros(3, 2), "n": torch.tensor(1)}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "both.pth"
    torch.save({"model": W, "ema": EMA, "epoch": 3}, path)
    return str(path)


def test_the_only_state_dict(tmp_path: Path) -> None:
    path = str(tmp_path / "one.pth")
    torch.save({"state_dict": W, "epoch": 3}, path)
    target = load_target(path)
    assert {k: s.shape for k, s in target.tree.specs.items()} == {"fc.weight": (3, 2), "fc.bias": (3,)}
    assert (target.label, target.place) == (f"{path}#state_dict", path)


def test_one_by_its_path(file: str) -> None:
    assert list(load_target(f"{file}#ema").tree.specs) == ["fc.weight", "n"]
    with pytest.raises(TargetError, match=r"has no state dict at `nope`; it has .*#model.*#ema"):
        load_target(f"{file}#nope")


def test_several_are_a_question(file: str) -> None:
    with pytest.raises(
        TargetError, match=r"holds 2 state dicts; name the one that is meant:\n.*#model  2 tensors"
    ):
        load_target(file)
    chosen = load_target(file, prefer=lambda targets: [t.label.endswith("#ema") for t in targets].index(True))
    assert list(chosen.tree.specs) == ["fc.weight", "n"]
    assert len(chosen.candidates) == 2


def test_a_number_sign_in_the_name(tmp_path: Path) -> None:
    path = str(tmp_path / "run#3.pth")
    torch.save(W, path)
    assert load_target(path).label == path


def test_errors_say_what_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(TargetError, match=r"(?i)as a reference for the model: .*html"):
        load_target(str(tmp_path / "page.pth"))
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(TargetError, match="holds no state dict"):
        load_target(str(tmp_path / "empty.pth"))
    with pytest.raises(TargetError, match="--kwargs is for models"):
        load_target(str(tmp_path / "empty.pth"), kwargs={"a": 1})


def test_no_torch_is_imported(file: str) -> None:
    code = f"import sys; from ckptdoctor.targets import load_target; load_target({file + '#ema'!r})"
    check = code + "; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
