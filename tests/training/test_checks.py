"""Static checks of optimizer state: by `inspect` in the file alone, by `diagnose --optimizer` against a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

import ckptdoctor
from ckptdoctor.cli.commands import group
from ckptdoctor.cli.running import run
from tests.training.zoo import Old, batches, seeded, train

MODEL = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, head=3):
        super().__init__()
        self.{a} = nn.Linear(5, 5)
        self.{b} = nn.Linear(5, 5)
        self.head = nn.Linear(5, head)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.pth"


def contents(named: bool = True) -> dict[str, Any]:
    model = seeded(Old)
    optimizer = optim.Adam(model.named_parameters() if named else model.parameters())
    train(model, optimizer, batches(3))
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}


def found(path: Path) -> dict[str, str]:
    """Code -> severity of the findings about the optimizer."""
    return {d.code: d.severity for d in ckptdoctor.inspect(path).diagnostics if d.code.startswith("CKD6")}


@pytest.mark.parametrize("named", [True, False])
def test_a_sound_file_has_no_finding(path: Path, named: bool) -> None:
    torch.save(contents(named), path)
    assert found(path) == {}


def test_another_number_of_parameters(path: Path) -> None:
    saved = contents(named=False)
    saved["optimizer"]["param_groups"][0]["params"].pop()
    saved["optimizer"]["state"].popitem()
    torch.save(saved, path)
    assert found(path) == {"CKD601": "note"}


@pytest.mark.parametrize(("named", "severity"), [(True, "warning"), (False, "note")])
def test_moments_of_another_shape(path: Path, named: bool, severity: str) -> None:
    saved = contents(named)
    for slot in ("exp_avg", "exp_avg_sq"):
        saved["optimizer"]["state"][0][slot] = torch.zeros(2, 2)
    torch.save(saved, path)
    assert found(path) == {"CKD602": severity}


def test_moments_without_a_parameter(path: Path) -> None:
    saved = contents()
    saved["optimizer"]["state"][77] = saved["optimizer"]["state"][0]
    torch.save(saved, path)
    assert found(path) == {"CKD603": "warning"}


def test_names_of_other_weights(path: Path) -> None:
    saved = contents()
    group_ = saved["optimizer"]["param_groups"][0]
    group_["param_names"] = [f"other{n}" for n in range(14)]
    torch.save(saved, path)
    assert found(path) == {"CKD603": "warning"}


def test_another_dtype(path: Path) -> None:
    saved = contents()
    for slots in saved["optimizer"]["state"].values():
        slots["exp_avg"] = slots["exp_avg"].bfloat16()
    torch.save(saved, path)
    assert found(path) == {"CKD604": "note"}


def test_another_device(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a machine with a GPU writes it: the location tags of the moments' storages.
    import torch.serialization

    saved = contents()
    on_gpu = {
        t.untyped_storage().data_ptr() for s in saved["optimizer"]["state"].values() for t in s.values()
    }
    own = torch.serialization.location_tag
    monkeypatch.setattr(
        torch.serialization, "location_tag", lambda s: "cuda:1" if s.data_ptr() in on_gpu else own(s)
    )
    torch.save(saved, path)
    assert found(path) == {"CKD605": "note"}


def test_steps_that_differ_are_read_without_torch(path: Path) -> None:
    saved = contents()
    saved["optimizer"]["state"][3]["step"] = torch.tensor(99.0)
    torch.save(saved, path)
    assert found(path) == {"CKD606": "note"}
    (finding,) = (d for d in ckptdoctor.inspect(path).diagnostics if d.code == "CKD606")
    assert [line.text for line in finding.evidence] == ["3 steps: 13 parameters", "99 steps: 1 parameters"]


class Net(nn.Module):
    def __init__(self, a: str = "a", b: str = "b", head: int = 3) -> None:
        super().__init__()
        self.add_module(a, nn.Linear(5, 5))
        self.add_module(b, nn.Linear(5, 5))
        self.head = nn.Linear(5, head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return x.mean(1)


def saved_net(path: Path, named: bool) -> None:
    model = seeded(Net)
    optimizer = optim.Adam(model.named_parameters() if named else model.parameters())
    train(model, optimizer, batches(3))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def diagnose(folder: Path, *args: str) -> int:
    return run(group, ["diagnose", str(folder / "model.py"), str(folder / "last.pth"), "--optimizer", *args])


def test_diagnose_says_that_the_state_follows(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.with_name("model.py").write_text(MODEL.format(a="b", b="a"))
    saved_net(path, named=True)
    assert diagnose(path.parent) == 1  # the envelope; nothing of the optimizer
    shown = capsys.readouterr()
    assert "the optimizer state of 6 parameters follows the plan, by the names in the file" in shown.err
    assert "CKD6" not in shown.out


def test_diagnose_asks_which_moments_are_whose(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.with_name("model.py").write_text(MODEL.format(a="b", b="a"))
    saved_net(path, named=False)
    assert diagnose(path.parent, "--format", "json") == 1
    data = json.loads(capsys.readouterr().out)
    (asked,) = (d for d in data["diagnostics"] if d["code"] == "CKD607")
    assert asked["help"][0]["command"] == "auto_resume(..., decisions=['param-order=checkpoint'])"
    assert run(group, ["explain", "CKD607"]) == 0


def test_diagnose_without_an_optimizer_says_so(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.with_name("model.py").write_text(MODEL.format(a="a", b="b"))
    torch.save(seeded(Net).state_dict(), path)
    assert diagnose(path.parent) == 1
    assert "the checkpoint has no optimizer state" in capsys.readouterr().out


def test_the_flag_is_what_asks(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.with_name("model.py").write_text(MODEL.format(a="b", b="a"))
    saved_net(path, named=False)
    run(group, ["diagnose", str(path.with_name("model.py")), str(path)])
    assert "CKD6" not in capsys.readouterr().out
