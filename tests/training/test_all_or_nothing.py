"""One plan, one transaction: whatever fails, model, EMA, optimizer, scheduler and scaler are as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel

from ckptdoctor.errors import ApplyError, CkptDoctorError, CorruptCheckpointError
from ckptdoctor.training.resume import auto_resume
from ckptdoctor.training.save import save_checkpoint
from tests.training.zoo import Old, batches, seeded, train


@dataclass
class Run:
    """Everything of one training."""

    model: nn.Module
    optimizer: Any = None
    scheduler: Any = None
    scaler: Any = None
    ema: Any = None
    held: list[Any] = field(default_factory=list)

    @classmethod
    def new(cls, seed: int) -> Run:
        model = seeded(Old, seed)
        optimizer = optim.AdamW(model.named_parameters(), lr=0.01 * seed)
        first = optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4)
        scheduler = optim.lr_scheduler.SequentialLR(
            optimizer, [first, optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 3])], [4]
        )
        run = cls(
            model,
            optimizer,
            scheduler,
            torch.amp.GradScaler("cpu", init_scale=2.0**seed),
            AveragedModel(model),
        )
        run.held = [*optimizer.param_groups, *model.parameters()]
        return run

    def go(self, count: int, start: int = 0) -> list[float]:
        losses = train(self.model, self.optimizer, batches(start + count)[start:], self.scheduler)
        self.ema.update_parameters(self.model)
        return losses

    def save(self, path: Path) -> None:
        save_checkpoint(path, self.model, self.optimizer, self.scheduler, self.scaler, ema=self.ema, epoch=1)

    def resume(self, path: Path, **changes: Any) -> Any:
        parts = {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "ema": self.ema,
        }
        return auto_resume(path, self.model, **{**parts, **changes})

    def everything(self) -> Any:
        """All values, as plain data."""
        state = {p: dict(s) for p, s in self.optimizer.state.items()}
        return plain([
            self.model.state_dict(), self.ema.state_dict(), [state.get(p) for p in self.model.parameters()],
            [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups],
            self.scheduler.state_dict(), self.scaler.state_dict(),
        ])  # fmt: skip

    def identities(self) -> list[int]:
        return [id(x) for x in (*self.optimizer.param_groups, *self.model.parameters())]


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, int | float | str | bool | None) else repr(value)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[float]]:
    run = Run.new(1)
    run.go(5)
    run.save(tmp_path / "last.pth")
    return tmp_path / "last.pth", run.go(4, 5)


def test_everything_goes_on(saved: tuple[Path, list[float]]) -> None:
    path, expected = saved
    run = Run.new(2)
    run.go(3)  # a used one: all of it is replaced
    receipt = run.resume(path)
    assert receipt.restored == ("model", "ema", "optimizer", "scheduler", "scaler")
    assert run.go(4, 5) == expected
    assert run.scaler.get_scale() == 2.0
    assert int(run.ema.n_averaged) == 2


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("injected")


def in_optimizer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.optimizer, "load_state_dict", fail)


def after_optimizer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.optimizer.register_load_state_dict_post_hook(fail)


def in_scheduler(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.scheduler, "load_state_dict", fail)


def inside_scheduler(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.scheduler._schedulers[1], "load_state_dict", fail)


def in_scaler(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.scaler, "load_state_dict", fail)


def in_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.model, "load_state_dict", fail)


def in_ema(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.ema, "load_state_dict", fail)


def interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.scaler, "load_state_dict", stop)


def not_as_staged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(optimizer: optim.Optimizer) -> None:
        optimizer.state[optimizer.param_groups[0]["params"][3]]["step"] += 1

    run.optimizer.register_load_state_dict_post_hook(spoil)


FAILURES: list[Callable[[Run, pytest.MonkeyPatch], None]] = [
    in_model, in_ema, in_optimizer, after_optimizer, in_scheduler, inside_scheduler, in_scaler, interrupted,
    not_as_staged,
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda f: f.__name__)
def test_nothing_is_touched_when_a_part_fails(
    saved: tuple[Path, list[float]], failure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.new(2)
    run.go(3)
    failure(run, monkeypatch)
    before, objects = copy.deepcopy(run.everything()), run.identities()
    with pytest.raises((CkptDoctorError, KeyboardInterrupt)):
        run.resume(saved[0])
    assert run.everything() == before
    assert run.identities() == objects
    assert run.scheduler.optimizer is run.optimizer
    monkeypatch.undo()
    run.optimizer._optimizer_load_state_dict_post_hooks.clear()
    assert run.resume(saved[0]).restored[-1] == "scaler"
    assert run.go(4, 5) == saved[1]


def test_a_failure_in_a_foreign_part_is_one_of_ours(saved: tuple[Path, list[float]]) -> None:
    run = Run.new(2)
    run.scheduler.load_state_dict = fail
    with pytest.raises(ApplyError, match=r"as they were.*RuntimeError: injected"):
        run.resume(saved[0])


def test_damaged_moments_are_found_before_anything_is_written(saved: tuple[Path, list[float]]) -> None:
    from ckptdoctor.api import inspect
    from ckptdoctor.training.source import of_archive

    path = saved[0]
    archive = inspect(path)
    leaf = of_archive(archive).value("optimizer")["state"][2]["exp_avg"]
    data = bytearray(path.read_bytes())
    data[archive.storages[leaf.spec.storage].offset + 5] ^= 0x40
    path.write_bytes(data)
    run = Run.new(2)
    before = copy.deepcopy(run.everything())
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        run.resume(path)
    assert run.everything() == before


def test_what_is_asked_for_and_not_there_is_an_error(tmp_path: Path) -> None:
    run = Run.new(1)
    run.go(2)
    save_checkpoint(tmp_path / "a.pth", run.model, run.optimizer)
    for role in ("scheduler", "scaler"):
        parts = {"scheduler": None, "scaler": None, "ema": None, role: getattr(run, role)}
        with pytest.raises(CkptDoctorError, match=f"CKD609 the checkpoint has no {role} state"):
            run.resume(tmp_path / "a.pth", **parts)
    with pytest.raises(CkptDoctorError, match="no averaged weights"):
        run.resume(tmp_path / "a.pth", scheduler=None, scaler=None)


def test_what_is_there_and_not_asked_for_is_said(saved: tuple[Path, list[float]]) -> None:
    run = Run.new(2)
    receipt = run.resume(saved[0], optimizer=None, scheduler=None, scaler=None, ema=None)
    assert receipt.restored == ("model",)
    for word in ("optimizer", "scheduler", "scaler", "EMA"):
        assert any(word in note for note in receipt.notes), word
