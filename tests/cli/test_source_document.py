"""The cases that started the project, end to end: the cause in one sentence, exit 1; repaired, exit 0.

1. `nn.Sequential` by index and by name, each into the other. 2. DataParallel around them. 3. A file with and
without `module.` into a model with and without the wrapper. 4. Bare files, and training statuses around a
state dict. 5. Files saved on CUDA.
"""

from __future__ import annotations

import copy
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptdoctor
from tests.cli.conftest import Run

MODELS = """\
from collections import OrderedDict
from torch import nn

def layers():
    return [nn.Conv2d(1, 20, 5), nn.ReLU(), nn.Conv2d(20, 64, 5), nn.ReLU()]

def by_index():
    return nn.Sequential(*layers())

def by_name():
    return nn.Sequential(OrderedDict(zip(["conv1", "relu1", "conv2", "relu2"], layers())))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.bn1 = nn.BatchNorm2d(20)
        self.fc = nn.Linear(20, 10)

def plain():
    return Net()

def plain_dp():
    return nn.DataParallel(Net())

def by_index_dp():
    return nn.DataParallel(by_index())

def by_name_dp():
    return nn.DataParallel(by_name())
"""

Factory = Callable[[], nn.Module]


@pytest.fixture(scope="module")
def models() -> dict[str, Factory]:
    space: dict[str, Factory] = {}
    exec(compile(MODELS, "model.py", "exec"), space)
    return space


@pytest.fixture
def place(here: Path) -> Path:
    (here / "model.py").write_text(MODELS)
    return here


def trained(model: nn.Module) -> nn.Module:
    """Values that no initialisation gives."""
    with torch.no_grad():
        for n, tensor in enumerate(model.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) * 0.25 + n)
    return model


def values(model: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# (saved from, loaded into, words of the one sentence that says why not)
PAIRS = [
    ("by_index", "by_name", "have another name in the model"),
    ("by_name", "by_index", "have another name in the model"),
    ("plain_dp", "plain", "every key in the checkpoint starts with `module.`"),
    ("plain", "plain_dp", "the model's names carry `module.`"),
    ("by_index_dp", "by_index", "every key in the checkpoint starts with `module.`"),
    ("by_index", "by_index_dp", "the model's names carry `module.`"),
    ("by_name_dp", "by_name", "every key in the checkpoint starts with `module.`"),
    ("by_name", "by_name_dp", "the model's names carry `module.`"),
    ("by_index_dp", "by_name", "have another name in the model"),
    ("by_name_dp", "by_index", "have another name in the model"),
]
SAME = ["by_index", "by_name", "plain", "plain_dp", "by_index_dp", "by_name_dp"]
# One pair of each kind goes through model.py, in a process of its own; the others take a saved tree.
BUILT = {("by_index", "by_name"), ("plain_dp", "plain"), ("plain", "plain_dp"), ("by_name_dp", "by_index")}


@pytest.mark.parametrize(("saved", "loaded", "sentence"), PAIRS, ids=lambda v: v if " " not in v else "")
def test_every_pair_is_diagnosed_and_repaired(
    run: Run, place: Path, models: dict[str, Factory], saved: str, loaded: str, sentence: str
) -> None:
    source, target = trained(models[saved]()), models[loaded]()
    torch.save(source.state_dict(), "in.pth")
    model = f"model.py:{loaded}"
    if (saved, loaded) not in BUILT:
        model = "model.pth"
        torch.save(target.state_dict(), model)

    seen = run("diagnose", model, "in.pth")
    assert seen.code == 1
    assert [line for line in seen.out.splitlines() if sentence in line], seen.out

    assert run("repair", model, "in.pth", "-o", "out.pth").code == 0
    target.load_state_dict(torch.load("out.pth", weights_only=True), strict=True)
    assert same(values(source), values(target))
    after = run("diagnose", model, "out.pth")
    assert after.code == 0
    assert after.out.startswith(f"out.pth loads into {model} as is: ")


@pytest.mark.parametrize("name", SAME)
def test_a_file_loads_into_what_it_was_saved_from(
    run: Run, place: Path, models: dict[str, Factory], name: str
) -> None:
    torch.save(models[name]().state_dict(), "in.pth")
    torch.save(models[name]().state_dict(), "model.pth")
    assert run("diagnose", "model.pth", "in.pth").code == 0


@pytest.mark.parametrize("into", ["plain", "wrapped", "inner"])
@pytest.mark.parametrize("saved", ["plain", "plain_dp"])
def test_auto_load_takes_all_load_pairs(
    place: Path, models: dict[str, Factory], saved: str, into: str
) -> None:
    source = trained(models[saved]())
    torch.save(source.state_dict(), "in.pth")
    wrapped = models["plain_dp"]()
    model = {"plain": models["plain"](), "wrapped": wrapped, "inner": wrapped.module}[into]
    receipt = ckptdoctor.auto_load(model, "in.pth")
    assert receipt.loaded == len(model.state_dict())
    assert same(values(source), values(model))


def status(state: object, model: nn.Module) -> dict[str, dict[str, object]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return {
        "meta": {"meta": {"epoch": 3}, "state_dict": state, "optimizer": optimizer.state_dict()},
        "status": {"epoch": 12, "iteration": 3400, "model": state, "optimizer": optimizer.state_dict()},
    }


@pytest.mark.parametrize("form", ["meta", "status"])
@pytest.mark.parametrize("saved", ["plain", "plain_dp"])
def test_a_training_status_is_opened(
    run: Run, place: Path, models: dict[str, Factory], saved: str, form: str
) -> None:
    source, target = trained(models[saved]()), models["plain"]()
    torch.save(status(source.state_dict(), source)[form], "in.pth")
    torch.save(target.state_dict(), "model.pth")
    path = {"meta": "state_dict", "status": "model"}[form]

    seen = run("diagnose", "model.pth", "in.pth")
    assert seen.code == 1
    assert f"the state dict is the entry `{path}` of the checkpoint" in seen.out
    assert ("`module.`" in seen.out) == (saved == "plain_dp")
    assert "optimizer" in seen.out

    assert run("repair", "model.pth", "in.pth", "-o", "out.pth").code == 0
    target.load_state_dict(torch.load("out.pth", weights_only=True), strict=True)
    assert same(values(source), values(target))
    assert run("diagnose", "model.pth", "out.pth").code == 0

    live = models["plain"]()
    ckptdoctor.auto_load(live, "in.pth")
    assert same(values(source), values(live))


def tagged(path: Path, device: str) -> None:
    """Rewrite the file as if its tensors had been on that device: only the tags differ."""
    tag = device.encode()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            if name.endswith("/data.pkl"):
                # BINUNICODE "cpu": one opcode, four bytes of length, the text.
                old = pickle.BINUNICODE + (3).to_bytes(4, "little") + b"cpu"
                assert old in data
                data = data.replace(old, pickle.BINUNICODE + len(tag).to_bytes(4, "little") + tag)
            archive.writestr(name, data)


def test_a_file_saved_on_cuda(run: Run, place: Path, models: dict[str, Factory]) -> None:
    source, target = trained(models["plain"]()), models["plain"]()
    torch.save(source.state_dict(), "in.pth")
    tagged(place / "in.pth", "cuda:9")
    with pytest.raises(RuntimeError):
        torch.load("in.pth")
    torch.save(target.state_dict(), "model.pth")

    seen = run("diagnose", "model.pth", "in.pth")
    assert seen.code == 1
    assert "saved on `cuda:9`, which this machine does not have" in " ".join(seen.out.split())
    assert run("repair", "model.pth", "in.pth", "-o", "out.pth").code == 0
    assert same(values(source), list(torch.load("out.pth", weights_only=True).values()))
    assert run("diagnose", "model.pth", "out.pth").code == 0

    ckptdoctor.auto_load(target, "in.pth", device="cpu")
    assert same(values(source), values(target))
    assert {t.device.type for t in target.state_dict().values()} == {"cpu"}


def test_a_state_dict_moved_to_the_cpu_before_saving(
    run: Run, place: Path, models: dict[str, Factory]
) -> None:
    source = trained(models["plain"]())
    torch.save(OrderedDict((k, v.cpu()) for k, v in source.state_dict().items()), "in.pth")
    torch.save(source.state_dict(), "model.pth")
    assert run("diagnose", "model.pth", "in.pth").code == 0


def test_a_refused_load_leaves_the_model_as_it_was(place: Path, models: dict[str, Factory]) -> None:
    source = models["plain"]()
    source.fc = nn.Linear(20, 1000)
    torch.save(source.state_dict(), "in.pth")
    model = trained(models["plain"]())
    before = copy.deepcopy(values(model))
    with pytest.raises(ckptdoctor.CkptDoctorError, match=r"reinit=fc\.\*\*"):
        ckptdoctor.auto_load(model, "in.pth")
    assert same(before, values(model))
    receipt = ckptdoctor.auto_load(model, "in.pth", decisions=["reinit=fc.**"])
    assert receipt.reinitialised == 2
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert torch.equal(model.fc.weight, before[-2])
