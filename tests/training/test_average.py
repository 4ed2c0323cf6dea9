"""EMA: which state dict is which, and names that lost their dots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ckptdoctor
from ckptdoctor.api import inspect
from ckptdoctor.cli.commands import group
from ckptdoctor.cli.running import run
from ckptdoctor.errors import CkptDoctorError, DecisionError, UndecidedError
from ckptdoctor.training.average import apart
from ckptdoctor.training.lint import lint
from ckptdoctor.training.resume import auto_resume
from tests.training.zoo import Old, seeded


def other(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of the same shapes and other values."""
    return {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}


def loaded(path: Path, choose: str) -> dict[str, torch.Tensor]:
    model = seeded(Old, 9)
    ckptdoctor.auto_load(model, path, decisions=[f"choose={choose}"])
    return model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


ROWS = [
    ({"arch": "old", "epoch": 3, "version": 2}, "state_dict", "state_dict_ema"),  # timm
    ({}, "params", "params_ema"),  # BasicSR
    ({"epoch": 1}, "model", "ema"),
    (
        {"meta": {"mmengine_version": "0.10", "epoch": 1, "iter": 9}},
        "ema_state_dict",
        "state_dict",
    ),  # swapped
]


@pytest.mark.parametrize(("more", "raw", "ema"), ROWS, ids=lambda r: r if isinstance(r, str) else "")
def test_ema_and_raw_are_known_by_the_layout(tmp_path: Path, more: dict, raw: str, ema: str) -> None:
    model = seeded(Old)
    torch.save({**more, raw: model.state_dict(), ema: other(model)}, tmp_path / "a.pth")
    assert same(loaded(tmp_path / "a.pth", "raw"), dict(model.state_dict()))
    assert same(loaded(tmp_path / "a.pth", "ema"), other(model))
    resumed = seeded(Old, 9)
    receipt = auto_resume(tmp_path / "a.pth", resumed)
    assert same(dict(resumed.state_dict()), dict(model.state_dict()))  # to go on: what was trained
    assert any("averaged" in note for note in receipt.notes)


def test_the_layout_does_not_choose_for_another_network(tmp_path: Path) -> None:
    critic = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 1))
    model = seeded(Old)
    contents = {"generator": model.state_dict(), "ema": other(model), "critic": critic.state_dict()}
    torch.save(contents, tmp_path / "gan.pth")
    fresh = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 1))
    auto_resume(tmp_path / "gan.pth", fresh)
    assert same(dict(fresh.state_dict()), dict(critic.state_dict()))
    resumed = seeded(Old, 9)
    auto_resume(tmp_path / "gan.pth", resumed)
    assert same(dict(resumed.state_dict()), dict(model.state_dict()))


def test_without_a_choice_it_is_a_question(tmp_path: Path) -> None:
    model = seeded(Old)
    torch.save({"params": model.state_dict(), "params_ema": other(model)}, tmp_path / "a.pth")
    with pytest.raises(UndecidedError):
        ckptdoctor.auto_load(seeded(Old, 9), tmp_path / "a.pth")


def ldm(model: nn.Module) -> dict[str, torch.Tensor]:
    """As latent diffusion saves: the network under `model.`, averages with their dots deleted."""
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    averages = {f"model_ema.{k.replace('.', '')}": p.detach() + 1 for k, p in model.named_parameters()}
    counters = {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(7)}
    return {**state, **averages, **counters}


def test_names_without_dots_get_them_back(tmp_path: Path) -> None:
    model = seeded(Old)
    torch.save({"state_dict": ldm(model)}, tmp_path / "ldm.ckpt")
    want = {k: v + 1 if k in dict(model.named_parameters()) else v for k, v in model.state_dict().items()}
    assert same(loaded(tmp_path / "ldm.ckpt", "ema"), want)
    found = ckptdoctor.diagnose(seeded(Old, 9), tmp_path / "ldm.ckpt", decisions=["choose=ema"])
    assert found.plan is not None
    again = seeded(Old, 9)
    ckptdoctor.apply(found.plan, model=again)  # a plan file keeps the choice
    assert same(dict(again.state_dict()), want)
    out = tmp_path / "ema.pth"
    assert (
        run(group, ["extract", str(tmp_path / "ldm.ckpt"), "model", "--choose", "ema", "-o", str(out)]) == 0
    )
    assert same(torch.load(out, weights_only=True), want)


def test_two_names_that_are_one_without_dots_are_refused(tmp_path: Path) -> None:
    state = {"in.1.1.w": torch.ones(2), "in.11.w": torch.ones(2), "x.w": torch.ones(2)}
    averages = {"model_ema.in11w": torch.zeros(2), "model_ema.xw": torch.zeros(2)}
    torch.save({**state, **averages}, tmp_path / "ldm.ckpt")
    with pytest.raises(DecisionError, match=r"average of `in\.1\.1\.w` or of `in\.11\.w`"):
        ckptdoctor.diagnose(nn.Linear(2, 2), tmp_path / "ldm.ckpt", decisions=["choose=ema"])


def test_mmcv_swaps_so_the_word_ema_is_a_question_there(tmp_path: Path) -> None:
    model = seeded(Old)
    averages = {f"ema_{k.replace('.', '_')}": p.detach() + 1 for k, p in model.named_parameters()}
    contents = {
        "meta": {"epoch": 1, "iter": 2, "mmcv_version": "1.7"},
        "state_dict": {**model.state_dict(), **averages},
    }
    torch.save(contents, tmp_path / "mm.pth")
    with pytest.raises(UndecidedError, match=r"choose=state_dict\[ema\]"):
        loaded(tmp_path / "mm.pth", "ema")
    state = loaded(tmp_path / "mm.pth", "state_dict[ema]")
    assert torch.equal(state["head.bias"], model.head.bias + 1)
    assert torch.equal(state["bn.running_mean"], model.bn.running_mean)


def test_no_averages_is_an_error(tmp_path: Path) -> None:
    torch.save({"state_dict": seeded(Old).state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CkptDoctorError, match="no averaged weights are known"):
        loaded(tmp_path / "a.pth", "ema")


def test_how_far_they_are_apart_is_reported_on_request(tmp_path: Path) -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    torch.save({"params": {"w": a}, "params_ema": {"module.w": b}}, tmp_path / "a.pth")
    found = apart(inspect(tmp_path / "a.pth"), "params", "params_ema")
    assert (found.compared, found.key, found.largest) == (1, "w", 0.5)
    assert found.relative == pytest.approx(0.1)
    notes = [d for d in lint(inspect(tmp_path / "a.pth"), deep=True) if d.code == "CKD807"]
    assert "differ by 10.00% of their norm, at most 0.5 in `w`" in notes[0].evidence[0].text
    assert not [d for d in lint(inspect(tmp_path / "a.pth")) if d.code == "CKD807"]
