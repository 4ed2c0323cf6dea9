"""Every layout of the table, as its writer's code writes it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim

from ckptdoctor.errors import ReadError
from ckptdoctor.training.resume import auto_resume
from ckptdoctor.training.source import open_training
from tests.training.zoo import Old, batches, seeded, train

Parts = dict[str, Any]


def mmcv(p: Parts) -> Parts:
    meta = {
        "epoch": 4,
        "iter": 40,
        "mmcv_version": "1.7.0",
        "time": "Fri",
        "fp16": {"loss_scaler": p["scaler"]},
    }
    return {"meta": meta, "state_dict": p["model"], "optimizer": p["optimizer"]}


def mmengine(p: Parts) -> Parts:
    meta = {"epoch": 4, "iter": 40, "mmengine_version": "0.10.5", "cfg": "model = dict()", "seed": 3}
    optimizer = {**p["optimizer"], "loss_scaler": p["scaler"]}
    more = {"message_hub": {"log_scalars": {}}, "param_schedulers": [p["scheduler"]]}
    return {"meta": meta, "state_dict": p["model"], "optimizer": optimizer, **more}


def mmengine_ema(p: Parts) -> Parts:
    ema = {f"module.{k}": v for k, v in p["model"].items()}  # EMAHook: the trained weights, for it swaps
    averages = {k: v + 1 if v.is_floating_point() else v for k, v in p["model"].items()}
    return {**mmengine(p), "state_dict": averages, "ema_state_dict": {"steps": torch.tensor(3), **ema}}


def fairseq(p: Parts) -> Parts:
    history = [{"criterion_name": "CE", "optimizer_name": "FairseqAdam", "num_updates": 40}]
    history[0]["lr_scheduler_state"] = p["scheduler"]
    extra = {"train_iterator": {"epoch": 4, "iterations_in_epoch": 0}, "val_loss": 2.5}
    return {
        "args": argparse.Namespace(lr=[0.1]), "cfg": None, "model": p["model"], "optimizer_history": history,
        "extra_state": extra, "last_optimizer_state": p["optimizer"], "task_state": {},
    }  # fmt: skip


def timm(p: Parts) -> Parts:
    return {
        "epoch": 4, "arch": "old", "state_dict": p["model"], "optimizer": p["optimizer"], "version": 2,
        "args": argparse.Namespace(model="old"), "amp_scaler": p["scaler"], "metric": np.float64(71.5),
        "state_dict_ema": p["model"],
    }  # fmt: skip


def detectron2(p: Parts) -> Parts:
    trainer = {"iteration": 40, "optimizer": p["optimizer"], "grad_scaler": p["scaler"]}
    whole = {"iteration": 40, "hooks": {"LRScheduler": p["scheduler"]}, "_trainer": trainer}
    return {"model": p["model"], "trainer": whole, "iteration": 40}


def fvcore(p: Parts) -> Parts:
    return {"model": p["model"], "optimizer": p["optimizer"], "scheduler": p["scheduler"], "iteration": 40}


def by_hand(p: Parts) -> Parts:
    return {
        "epoch": 4, "model_state_dict": p["model"], "optimizer_state_dict": p["optimizer"],
        "scheduler_state_dict": p["scheduler"], "scaler_state_dict": p["scaler"], "best_acc": 0.7, "global_step": 40,
    }  # fmt: skip


Write = Callable[[Parts], Parts]
# writer, name in the table, epoch, iteration, scheduler, scaler
ROWS: list[tuple[Write, str, int | None, int | None, bool, bool]] = [
    (mmcv, "mmcv", 4, 40, False, True),
    (mmengine, "mmengine", 4, 40, True, True),
    (mmengine_ema, "mmengine with EMAHook", 4, 40, True, True),
    (fairseq, "fairseq", 4, 40, True, False),
    (timm, "timm", 4, None, False, True),
    (detectron2, "detectron2", None, 40, True, True),
    (fvcore, "detectron2", None, 40, True, False),
    (by_hand, "a plain dict", 4, 40, True, True),
]


@pytest.mark.parametrize(("write", "name", "epoch", "iteration", "has_scheduler", "has_scaler"), ROWS)
def test_a_layout_is_resumed(
    tmp_path: Path,
    write: Write,
    name: str,
    epoch: int | None,
    iteration: int | None,
    has_scheduler: bool,
    has_scaler: bool,
) -> None:
    model, optimizer, schedule, scaler = fresh(1)
    train(model, optimizer, batches(4), schedule)
    parts = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict(),
        "scaler": scaler.state_dict(),
    }  # fmt: skip
    torch.save(write(parts), tmp_path / "last.pth")
    if not has_scheduler:
        schedule = None
    expected = train(model, optimizer, batches(8)[4:], schedule)
    again, other, steps, scale = fresh(9)
    receipt = auto_resume(
        tmp_path / "last.pth", again, other, steps if has_scheduler else None, scale if has_scaler else None
    )
    assert (receipt.layout, receipt.epoch, receipt.iteration) == (name, epoch, iteration)
    assert train(again, other, batches(8)[4:], steps if has_scheduler else None) == expected
    assert not has_scaler or scale.get_scale() == 2.0


def fresh(seed: int) -> tuple[nn.Module, optim.Optimizer, Any, Any]:
    model = seeded(Old, seed)
    optimizer = optim.SGD(model.parameters(), lr=0.01 * seed, momentum=0.9)
    schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    return model, optimizer, schedule, torch.amp.GradScaler("cpu", init_scale=2.0**seed)


def test_other_entries_come_back_as_values(tmp_path: Path) -> None:
    model = seeded(Old)
    contents = {
        "model": model.state_dict(), "args": argparse.Namespace(lr=0.1, tags=["a"]), "best": np.float32(0.5),
        "rng": torch.get_rng_state(), "numpy_rng": np.random.get_state(), "run": Path("/a/b"),
    }  # fmt: skip
    torch.save(contents, tmp_path / "a.pth")
    entries = auto_resume(tmp_path / "a.pth", model).entries
    assert (entries["args"], entries["best"]) == ({"lr": 0.1, "tags": ["a"]}, 0.5)
    assert torch.equal(entries["rng"], contents["rng"])
    assert np.array_equal(entries["numpy_rng"][1], contents["numpy_rng"][1])
    assert entries["run"].what.startswith("pathlib")  # named, never made


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "fired"), "w"))

    model = seeded(Old)
    optimizer = optim.SGD(model.parameters(), momentum=0.9)
    state = {**optimizer.state_dict(), "bomb": Bomb()}
    torch.save(
        {"model": model.state_dict(), "optimizer": state, "scheduler": {"last_epoch": Bomb()}},
        tmp_path / "a.pth",
    )
    auto_resume(tmp_path / "a.pth", model, optimizer)
    assert not (tmp_path / "fired").exists()


def test_a_folder_without_weights_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(
        ReadError, match=r"Trainer folder without weights; expected one of model\.safetensors"
    ):
        open_training(tmp_path)


def test_a_damaged_json_is_a_read_error(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "trainer_state.json").write_text('{"epoch": ')
    with pytest.raises(ReadError, match=r"trainer_state\.json: cannot be read"):
        open_training(tmp_path)
