"""Values that a plan keeps from the model, when all there is of the model is its source."""

from pathlib import Path

import pytest
import torch

import ckptdoctor
from ckptdoctor.errors import TargetError
from ckptdoctor.targets.values import initial_values

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10, extra=None):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, classes)
        nn.init.normal_(self.fc.weight, std=3.0)
        self.extra = extra

class Extra(Net):
    def get_extra_state(self):
        return {"scale": 2.0}

    def set_extra_state(self, state):
        assert state == {"scale": 2.0}

class Odd(Net):
    def get_extra_state(self):
        return Odd

ready = Net()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def checkpoint(classes: int, path: str) -> dict[str, torch.Tensor]:
    namespace: dict[str, type] = {}
    exec(NET, namespace)
    state = namespace["Net"](classes).state_dict()
    torch.save({f"module.{k}": v for k, v in state.items()}, path)
    return state


def test_values_are_those_of_the_models_own_initialisation_and_the_same_each_time(here: Path) -> None:
    first = initial_values("net.py:Net", ["fc.weight", "norm.num_batches_tracked"], kwargs={"classes": 500})
    again = initial_values("net.py:Net", ["fc.weight"], kwargs={"classes": 500})
    assert first["fc.weight"].shape == (500, 8) and 2.5 < first["fc.weight"].std() < 3.5
    assert torch.equal(first["fc.weight"], again["fc.weight"])
    assert first["norm.num_batches_tracked"].item() == 0


def test_a_model_that_stands_ready_has_its_random_values_too(here: Path) -> None:
    assert 2.0 < initial_values("net.py:ready", ["fc.weight"])["fc.weight"].std() < 4.0


@pytest.mark.parametrize("model", ["net.tree", "ref.pth", "net.py"])
def test_what_is_no_source_has_no_initial_values(here: Path, model: str) -> None:
    with pytest.raises(TargetError, match=r"cannot be built"):
        initial_values(model, ["fc.weight"])


def test_a_key_that_the_model_has_not_is_named(here: Path) -> None:
    with pytest.raises(TargetError, match=r"nope"):
        initial_values("net.py:Net", ["nope"])


def test_extra_state_that_is_no_plain_data_is_refused(here: Path) -> None:
    assert initial_values("net.py:Extra", ["_extra_state"]) == {"_extra_state": {"scale": 2.0}}
    with pytest.raises(TargetError, match="extra state"):
        initial_values("net.py:Odd", ["_extra_state"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_new_head_is_written_from_the_model_and_the_rest_from_the_file(here: Path, suffix: str) -> None:
    from safetensors.torch import load_file

    state = checkpoint(1000, "in.pth")
    plan = ckptdoctor.plan("net.py:Net", "in.pth", ["reinit=fc.**"])
    receipt = ckptdoctor.apply(plan, "in.pth", out=f"out{suffix}")
    assert (receipt.loaded, receipt.reinitialised) == (len(state) - 2, 2)
    found = load_file("out.safetensors") if suffix != ".pth" else torch.load("out.pth", weights_only=True)
    assert torch.equal(found["body.weight"], state["body.weight"])
    assert 2.0 < found["fc.weight"].std() < 4.0 and found["fc.weight"].shape == (10, 8)


def test_a_live_model_gives_its_own_values_to_the_file_and_is_not_changed(here: Path) -> None:
    namespace: dict[str, type] = {}
    exec(NET, namespace)
    state = checkpoint(1000, "in.pth")
    model = namespace["Net"](10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = ckptdoctor.plan(model, "in.pth", ["reinit=fc.**"])
    ckptdoctor.apply(plan, "in.pth", model=model, out="out.pth")
    found = torch.load("out.pth", weights_only=True)
    assert torch.equal(found["fc.weight"], before["fc.weight"])
    assert torch.equal(found["body.weight"], state["body.weight"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_repaired_file_is_compatible_and_loads_with_torch_alone(here: Path) -> None:
    state = checkpoint(10, "in.pth")
    plan = ckptdoctor.plan("net.py:Net", "in.pth")
    ckptdoctor.apply(plan, "in.pth", out="out.pth")
    assert ckptdoctor.diagnose("net.py:Net", "out.pth").verdict == "compatible"
    namespace: dict[str, type] = {}
    exec(NET, namespace)
    model = namespace["Net"]()
    model.load_state_dict(torch.load("out.pth", weights_only=True), strict=True)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
