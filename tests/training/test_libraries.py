"""Training statuses that the real libraries wrote, resumed outside of them; and into renamed models."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ckptdoctor.errors import UndecidedError
from ckptdoctor.training.resume import auto_resume
from tests.training.zoo import RENAMES, New, Old, batches, seeded, train

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_DISABLED", "true")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Items(Dataset[Any]):
    """The batches of `zoo`, one by one."""

    def __init__(self, count: int) -> None:
        self.items = [(x, y) for xs, ys in batches(count) for x, y in zip(xs, ys, strict=True)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.items[i]


@pytest.fixture(scope="module")
def lightning_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 8})
            self.net = seeded(Old)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = optim.AdamW(self.parameters(), lr=0.01)
            schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    folder = tmp_path_factory.mktemp("lightning")
    trainer = pl.Trainer(
        max_steps=5, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Module(), DataLoader(Items(5), batch_size=6))
        trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def reference(steps: int) -> list[float]:
    """The same training by hand, without an interruption: the losses from step 5 on."""
    model = seeded(Old)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    return train(model, optimizer, batches(steps), schedule)[5:]


def test_a_lightning_checkpoint_goes_on_outside_of_lightning(lightning_file: Path) -> None:
    model = seeded(Old, 7)
    optimizer = optim.AdamW(model.parameters(), lr=5.0)
    schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    receipt = auto_resume(lightning_file, model, optimizer, schedule)
    assert (receipt.layout, receipt.iteration) == ("Lightning", 5)
    assert receipt.restored == ("model", "optimizer", "scheduler")
    assert receipt.entries["hyper_parameters"] == {"width": 8}
    assert {"loops", "callbacks"} <= set(receipt.entries)
    assert train(model, optimizer, batches(11)[5:], schedule) == reference(11)


def test_a_lightning_checkpoint_goes_on_in_a_renamed_model(lightning_file: Path) -> None:
    renames = [text.replace("rename=", "rename=net.") for text in RENAMES]
    model = seeded(New, 7)
    optimizer = optim.AdamW(model.named_parameters(), lr=5.0)
    schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    with pytest.raises(UndecidedError, match="param-order=checkpoint"):
        auto_resume(lightning_file, model, optimizer, schedule, decisions=renames)
    auto_resume(lightning_file, model, optimizer, schedule, decisions=[*renames, "param-order=checkpoint"])
    assert train(model, optimizer, batches(11)[5:], schedule) == reference(11)


class Wrapped(nn.Module):
    """What transformers' Trainer wants of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = seeded(Old)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def collate(items: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack([x for x, _ in items]), "labels": torch.stack([y for _, y in items])}


class InOrder(torch.utils.data.SequentialSampler):
    """No shuffling."""


@pytest.fixture(scope="module")
def trainer_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    from transformers import Trainer, TrainingArguments
    from transformers import logging as hf_logging

    hf_logging.set_verbosity_error()

    class Ordered(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return InOrder(self.train_dataset)

    folder = tmp_path_factory.mktemp("trainer")
    arguments = TrainingArguments(
        str(folder), max_steps=11, save_steps=5, per_device_train_batch_size=6, learning_rate=0.01,
        lr_scheduler_type="linear", logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        weight_decay=0.1, logging_nan_inf_filter=False, max_grad_norm=0.0,
    )  # fmt: skip
    trainer = Ordered(Wrapped(), arguments, data_collator=collate, train_dataset=Items(11))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return folder / "checkpoint-5", losses[5:]


def decayed(model: nn.Module) -> optim.Optimizer:
    """The groups that Trainer makes: biases and norms without weight decay."""
    from transformers.trainer_pt_utils import get_parameter_names

    skip = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    names = set(get_parameter_names(model, [nn.LayerNorm], skip))
    params = dict(model.named_parameters())
    return optim.AdamW(
        [
            {"params": [p for n, p in params.items() if n in names], "weight_decay": 0.1},
            {"params": [p for n, p in params.items() if n not in names], "weight_decay": 0.0},
        ],
        lr=9.9,
    )


def test_a_trainer_folder_goes_on_outside_of_transformers(trainer_folder: tuple[Path, list[float]]) -> None:
    from transformers import get_linear_schedule_with_warmup

    folder, expected = trainer_folder
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "model.safetensors"} <= set(
        os.listdir(folder)
    )
    model = seeded(Old, 7)
    optimizer = decayed(model)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 11)
    with pytest.raises(
        UndecidedError, match="param-order=model"
    ):  # safetensors are sorted: no order is proved
        auto_resume(folder, model, optimizer, schedule)
    receipt = auto_resume(folder, model, optimizer, schedule, decisions=["param-order=model"])
    state = json.loads((folder / "trainer_state.json").read_text())
    assert receipt.layout == "a transformers Trainer folder"
    assert (receipt.iteration, receipt.epoch) == (5, state["epoch"])
    assert receipt.entries["trainer_state.json"]["global_step"] == 5
    assert "rng_state.pth" in receipt.entries
    losses = train(model, optimizer, batches(11)[5:], schedule)
    assert losses == pytest.approx(expected, abs=1e-4)  # Trainer logs four digits


def test_an_accelerate_folder_goes_on(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(seeded(Old), optim.AdamW(seeded(Old).parameters(), lr=0.01))
    inner = accelerator.unwrap_model(model)
    optimizer = accelerator.prepare(optim.AdamW(inner.named_parameters(), lr=0.01))
    accelerator._optimizers = [optimizer]
    schedule = accelerator.prepare(optim.lr_scheduler.StepLR(optimizer, 2, 0.5))
    data = batches(8)
    train(inner, optimizer.optimizer, data[:4], schedule.scheduler)
    accelerator.save_state(str(tmp_path / "state"))
    expected = train(inner, optimizer.optimizer, data[4:], schedule.scheduler)
    fresh = seeded(New, 7)
    wrapped = optim.AdamW(fresh.named_parameters(), lr=5.0)
    again = optim.lr_scheduler.StepLR(wrapped, 2, 0.5)
    receipt = auto_resume(tmp_path / "state", fresh, wrapped, again, decisions=RENAMES)
    assert receipt.layout == "an accelerate folder"
    assert train(fresh, wrapped, data[4:], again) == expected
