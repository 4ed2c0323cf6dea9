"""The functions that `import ckptdoctor` offers, on small real models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptdoctor
from ckptdoctor.errors import (
    ApplyError,
    DecisionError,
    IncompatibleError,
    PlanError,
    StalePlanError,
    UndecidedError,
)


class Net(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)


NETS = """\
from torch import nn

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Linear(2, 2)

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)
"""


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Net, Path]:
    """A trained net and its file, saved under DataParallel."""
    torch.manual_seed(1)
    model = Net()
    path = tmp_path / "ddp.pth"
    torch.save(nn.DataParallel(model).state_dict(), path)
    return model, path


def test_inspect(saved: tuple[Net, Path]) -> None:
    archive = ckptdoctor.inspect(saved[1])
    assert isinstance(archive, ckptdoctor.Archive)
    assert [s.path for s in archive.state_dicts] == [""]
    assert list(archive.state_dicts[0].tree.specs) == [f"module.{k}" for k in saved[0].state_dict()]
    assert ckptdoctor.inspect(str(saved[1]), deep=True).diagnostics == archive.diagnostics


def test_snapshot() -> None:
    tree = ckptdoctor.snapshot(Net())
    assert isinstance(tree, ckptdoctor.ParamTree)
    assert {k: tuple(v.shape) for k, v in Net().state_dict().items()} == {
        k: s.shape for k, s in tree.specs.items()
    }


@pytest.mark.parametrize("form", ["live", "tree", "file"])
def test_diagnose_takes_a_model_in_every_form(saved: tuple[Net, Path], tmp_path: Path, form: str) -> None:
    torch.save(Net().state_dict(), tmp_path / "model.pth")
    model = {"live": Net(), "tree": ckptdoctor.snapshot(Net()), "file": tmp_path / "model.pth"}[form]
    found = ckptdoctor.diagnose(model, saved[1])
    assert (found.verdict, found.ok, found.coverage) == ("repairable", False, 1.0)
    assert [d.code for d in found.diagnostics] == ["CKD101"]
    assert found.plan is not None
    assert found.plan.safe


def test_diagnose_builds_a_model_from_source(saved: tuple[Net, Path], tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    found = ckptdoctor.diagnose(str(tmp_path / "nets.py"), saved[1])
    assert found.verdict == "repairable"
    assert found.target.label.endswith("nets.py:Net")
    found = ckptdoctor.diagnose(str(tmp_path / "nets.py:Net"), saved[1], kwargs={"classes": 3})
    assert found.verdict == "undecided"
    assert [d.code for d in found.diagnostics if d.fix is None] == ["CKD301"]
    assert found.diagnostics[-1].place.endswith("nets.py:13")


def test_a_diagnosis_as_data_and_as_text(saved: tuple[Net, Path]) -> None:
    found = ckptdoctor.diagnose(Net(3), saved[1])
    data = found.to_dict()
    assert {"format", "verdict", "diagnostics", "plan", "alignment", "unused", "source", "target"} <= set(
        data
    )
    by_target = {entry["target"]: entry for entry in data["alignment"]}
    assert list(by_target) == list(Net().state_dict())
    assert by_target["conv.weight"]["sources"] == ["module.conv.weight"]
    assert by_target["fc.weight"]["status"] == "missing"
    assert {u["source"] for u in data["unused"]} == {"module.fc.weight", "module.fc.bias"}
    text = repr(found)
    assert text.splitlines()[0] == f"{saved[1]}: CKD101 [*] every key in the checkpoint starts with `module.`"
    assert ": undecided with Net: 7 of 9 tensors" in text.splitlines()[-1]


def test_plan_then_apply_to_a_model(saved: tuple[Net, Path]) -> None:
    made = ckptdoctor.plan(Net(), saved[1])
    assert isinstance(made, ckptdoctor.Plan)
    model = Net()
    receipt = ckptdoctor.apply(made, model=model)
    assert isinstance(receipt, ckptdoctor.Receipt)
    assert receipt.loaded == 9
    assert same(state(model), state(saved[0]))


def test_plan_then_apply_to_a_file(saved: tuple[Net, Path], tmp_path: Path) -> None:
    made = ckptdoctor.plan(Net(), saved[1])
    model = Net()
    before = state(model)
    out = tmp_path / "out.pth"
    ckptdoctor.apply(made, saved[1], model=model, out=out)
    assert same(state(model), before)
    model.load_state_dict(torch.load(out, weights_only=True), strict=True)
    assert same(state(model), state(saved[0]))


def test_apply_needs_somewhere_to_load(saved: tuple[Net, Path]) -> None:
    made = ckptdoctor.plan(Net(), saved[1])
    with pytest.raises(ApplyError, match="model"):
        ckptdoctor.apply(made, saved[1])


def test_a_plan_is_for_its_own_trees_only(saved: tuple[Net, Path]) -> None:
    made = ckptdoctor.plan(Net(), saved[1])
    with pytest.raises(StalePlanError):
        ckptdoctor.apply(made, saved[1], model=Net(3))


def test_plan_raises_while_something_is_undecided(saved: tuple[Net, Path]) -> None:
    with pytest.raises(UndecidedError) as caught:
        ckptdoctor.plan(Net(3), saved[1])
    assert "decisions=['reinit=fc.**']" in str(caught.value)
    assert "CKD301" in [d.code for d in caught.value.diagnostics]
    made = ckptdoctor.plan(Net(3), saved[1], ["reinit=fc.**"])
    assert list(made.decision) == ["reinit=fc.**"]


def test_what_a_refusal_prints_is_what_python_takes(saved: tuple[Net, Path]) -> None:
    with pytest.raises(UndecidedError) as caught:
        ckptdoctor.auto_load(Net(3), saved[1])
    line = next(line for line in str(caught.value).splitlines() if "decisions=" in line)
    given = eval(line.partition("decisions=")[2].partition("  #")[0])
    assert ckptdoctor.auto_load(Net(3), saved[1], decisions=given).reinitialised == 2


def test_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({f"layers.{i}.weight": torch.zeros(64, 32) for i in range(12)}, tmp_path / "small.pth")
    big = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(64, 128, bias=False) for _ in range(12))})
    before = state(big)
    with pytest.raises(IncompatibleError, match="CKD307"):
        ckptdoctor.auto_load(big, tmp_path / "small.pth")
    assert same(state(big), before)


@pytest.mark.parametrize("kind", ["plain", "parallel", "meta", "half", "compiled"])
def test_auto_load_into_every_kind_of_model(saved: tuple[Net, Path], kind: str) -> None:
    model: nn.Module = Net()
    if kind == "parallel":
        model = nn.DataParallel(model)
    elif kind == "half":
        model = model.half()
    elif kind == "meta":
        with torch.device("meta"):
            model = Net()
    elif kind == "compiled":
        model = torch.compile(model)
    receipt = ckptdoctor.auto_load(model, saved[1], device="cpu")
    assert receipt.loaded == 9
    pairs = zip(model.state_dict().values(), saved[0].state_dict().values(), strict=True)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in pairs)


def test_auto_load_with_a_reviewed_plan(saved: tuple[Net, Path], tmp_path: Path) -> None:
    from ckptdoctor.plan import to_toml

    (tmp_path / "repair.toml").write_text(to_toml(ckptdoctor.plan(Net(), saved[1])))
    model = Net()
    ckptdoctor.auto_load(model, saved[1], plan=tmp_path / "repair.toml")
    assert same(state(model), state(saved[0]))
    with pytest.raises(DecisionError):
        ckptdoctor.auto_load(model, saved[1], plan=tmp_path / "repair.toml", decisions=["drop=x"])
    (tmp_path / "broken.toml").write_text("format = 7")
    with pytest.raises(PlanError, match=r"broken\.toml"):
        ckptdoctor.auto_load(model, saved[1], plan=tmp_path / "broken.toml")


@pytest.mark.parametrize("text", ["reinit", "reinit=", "explode=x", "rename=a", "rename==b"])
def test_a_malformed_decision(saved: tuple[Net, Path], text: str) -> None:
    with pytest.raises(DecisionError):
        ckptdoctor.diagnose(Net(), saved[1], decisions=[text])


def test_choose_decides_between_state_dicts(tmp_path: Path) -> None:
    raw, ema = Net(), Net()
    torch.save({"model": raw.state_dict(), "model_ema": ema.state_dict()}, tmp_path / "c.pth")
    model = Net()
    with pytest.raises(UndecidedError, match="choose=model_ema"):
        ckptdoctor.auto_load(model, tmp_path / "c.pth")
    for path, source in (("model", raw), ("model_ema", ema)):
        ckptdoctor.auto_load(model, tmp_path / "c.pth", decisions=[f"choose={path}"])
        assert same(state(model), state(source))


def test_diff(saved: tuple[Net, Path]) -> None:
    assert not ckptdoctor.diff(Net(), Net())
    found = ckptdoctor.diff(Net(), Net(3))
    assert found
    assert found.reshaped == ("fc.weight", "fc.bias")
    assert (found.removed, found.added, found.recast) == ((), (), ())
    assert ckptdoctor.diff(Net(), Net().half()).recast[0] == "conv.weight"
    assert len(ckptdoctor.diff(saved[1], Net()).added) == 9
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert ckptdoctor.diff(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), tied).retied == (
        ("0.weight", "1.weight"),
    )


# In processes of their own: what is imported before matters.
ORDERS = [
    "import ckptdoctor.plan, ckptdoctor.apply",
    "from ckptdoctor.plan import Plan; from ckptdoctor.apply import run_on_model",
    "import ckptdoctor; ckptdoctor.plan; import ckptdoctor.plan.toml, ckptdoctor.apply.model",
    "from ckptdoctor import plan, apply",
]


@pytest.mark.parametrize("first", ORDERS)
def test_plan_and_apply_are_functions_whatever_was_imported(first: str) -> None:
    code = f"{first}\nimport ckptdoctor, inspect\n"
    code += "print(*map(inspect.isfunction, (ckptdoctor.plan, ckptdoctor.apply)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_the_documented_examples_run() -> None:
    import doctest

    import ckptdoctor.api

    result = doctest.testmod(ckptdoctor.api)
    assert result.attempted >= 4
    assert result.failed == 0
