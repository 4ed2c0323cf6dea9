"""Where training programs put what: one row for each layout, and what plain dicts are called.

To add a layout, add a row. Paths are dotted, as ``inspect`` prints them; a role may have several, of which
the first that is there counts. Sources: the writers' own code (mmengine ``Runner.save_checkpoint`` and
``EMAHook``, Lightning ``CheckpointConnector.dump_checkpoint``, fairseq ``Trainer.state_dict``, timm
``CheckpointSaver``, detectron2 ``DefaultTrainer.state_dict``, transformers ``Trainer._save_checkpoint``,
accelerate ``save_accelerator_state``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["model", "ema", "optimizer", "scheduler", "scaler", "epoch", "iteration"]
ROLES: tuple[Role, ...] = ("model", "ema", "optimizer", "scheduler", "scaler", "epoch", "iteration")


@dataclass(frozen=True, slots=True)
class Layout:
    """One row. ``needs``: paths that are all there. ``roles``: role -> paths, the best first."""

    name: str
    needs: tuple[str, ...]
    roles: Mapping[Role, tuple[str, ...]]
    note: str = ""  # what a person should know before choosing


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "ckptdoctor",
        ("ckptdoctor.format", "state_dict"),
        {
            "model": ("state_dict",), "ema": ("ema_state_dict",), "optimizer": ("optimizer",),
            "scheduler": ("scheduler",), "scaler": ("scaler",), "epoch": ("meta.epoch",),
            "iteration": ("meta.iteration",),
        },
    ),
    Layout(
        "Lightning",
        ("pytorch-lightning_version", "state_dict"),
        {
            "model": ("state_dict",), "optimizer": ("optimizer_states",), "scheduler": ("lr_schedulers",),
            "scaler": ("MixedPrecision", "MixedPrecisionPlugin", "NativeMixedPrecisionPlugin",
                       "native_amp_scaling_state"),
            "epoch": ("epoch",), "iteration": ("global_step",),
        },
    ),
    Layout(
        "mmengine with EMAHook",
        ("meta.mmengine_version", "state_dict", "ema_state_dict"),
        {
            "model": ("ema_state_dict",), "ema": ("state_dict",), "optimizer": ("optimizer",),
            "scheduler": ("param_schedulers",), "scaler": ("optimizer.loss_scaler",),
            "epoch": ("meta.epoch",), "iteration": ("meta.iter",),
        },
        "mmengine swaps them when it saves: `state_dict` is the average, `ema_state_dict` was trained",
    ),
    Layout(
        "mmengine",
        ("meta.mmengine_version", "state_dict"),
        {
            "model": ("state_dict",), "optimizer": ("optimizer",), "scheduler": ("param_schedulers",),
            "scaler": ("optimizer.loss_scaler",), "epoch": ("meta.epoch",), "iteration": ("meta.iter",),
        },
    ),
    Layout(
        "mmcv",
        ("meta.mmcv_version", "state_dict"),
        {
            "model": ("state_dict",), "optimizer": ("optimizer",), "scaler": ("meta.fp16.loss_scaler",),
            "epoch": ("meta.epoch",), "iteration": ("meta.iter",),
        },
    ),
    Layout(
        "mmcv",
        ("meta.epoch", "meta.iter", "state_dict"),
        {
            "model": ("state_dict",), "optimizer": ("optimizer",), "epoch": ("meta.epoch",),
            "iteration": ("meta.iter",),
        },
    ),
    Layout(
        "fairseq",
        ("optimizer_history", "extra_state", "model"),
        {
            "model": ("model",), "ema": ("extra_state.ema", "extra_state.ema_fp32_params"),
            "optimizer": ("last_optimizer_state",),
            "scheduler": ("optimizer_history[-1].lr_scheduler_state",),
            "epoch": ("extra_state.train_iterator.epoch",),
            "iteration": ("optimizer_history[-1].num_updates",),
        },
    ),
    Layout(
        "timm",
        ("arch", "state_dict", "epoch", "version"),
        {
            "model": ("state_dict",), "ema": ("state_dict_ema",), "optimizer": ("optimizer",),
            "scaler": ("amp_scaler",), "epoch": ("epoch",),
        },
    ),
    Layout(
        "detectron2",
        ("trainer.iteration", "model"),
        {
            "model": ("model",), "ema": ("ema_state", "model_ema"),
            "optimizer": ("trainer._trainer.optimizer", "trainer.optimizer", "optimizer"),
            "scheduler": ("trainer.hooks.LRScheduler", "scheduler"),
            "scaler": ("trainer._trainer.grad_scaler", "trainer.grad_scaler"),
            "iteration": ("trainer.iteration",),
        },
    ),
    Layout(
        "detectron2",
        ("iteration", "model", "optimizer", "scheduler"),
        {
            "model": ("model",), "optimizer": ("optimizer",), "scheduler": ("scheduler",),
            "iteration": ("iteration",),
        },
    ),
)  # fmt: skip

# What hand-written training loops call it, most common first (failures seen in issue threads and loaders).
PLAIN = Layout(
    "a plain dict",
    (),
    {
        "model": (
            "state_dict", "model_state_dict", "model_state", "model", "net", "net_state_dict", "network",
            "params", "module", "weights", "generator",
        ),
        "ema": (
            "state_dict_ema", "ema_state_dict", "ema_model_state_dict", "model_ema_state_dict", "model_ema",
            "ema_model", "ema", "params_ema", "g_ema", "ema_net", "averaged_model",
        ),
        "optimizer": (
            "optimizer", "optimizer_state_dict", "optim_state_dict", "optimizer_state", "optim", "opt",
            "opt_state_dict", "optimizers", "optimizer_states",
        ),
        "scheduler": (
            "scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict", "sched",
            "scheduler_state", "schedulers", "lr_schedulers",
        ),
        "scaler": (
            "scaler", "amp_scaler", "grad_scaler", "scaler_state_dict", "scaler_state",
            "grad_scaler_state_dict", "amp",
        ),
        "epoch": ("epoch", "start_epoch", "last_epoch", "current_epoch", "epochs"),
        "iteration": ("iteration", "global_step", "step", "iter", "num_updates", "it", "steps"),
    },
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Folder:
    """A training status in several files. ``files``: role -> names; ``numbers``: role -> (file, path)."""

    name: str
    marks: tuple[str, ...]  # one of them is there
    files: Mapping[Role, tuple[str, ...]]
    numbers: Mapping[Role, tuple[str, str]]
    weights: tuple[str, ...]
    more: tuple[str, ...]  # other files, read and handed on


WEIGHTS: Sequence[str] = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip
ADAPTERS: Sequence[str] = ("adapter_model.safetensors", "adapter_model.bin")

FOLDERS: tuple[Folder, ...] = (
    Folder(
        "a transformers Trainer folder",
        ("trainer_state.json",),
        {
            "optimizer": ("optimizer.pt", "optimizer.bin"), "scheduler": ("scheduler.pt",),
            "scaler": ("scaler.pt",),
        },
        {"epoch": ("trainer_state.json", "epoch"), "iteration": ("trainer_state.json", "global_step")},
        (*WEIGHTS, *ADAPTERS),
        ("trainer_state.json", "rng_state.pth", "rng_state_0.pth"),
    ),
    Folder(
        "an accelerate folder",
        ("optimizer.bin", "random_states_0.pkl", "scheduler.bin"),
        {"optimizer": ("optimizer.bin",), "scheduler": ("scheduler.bin",), "scaler": ("scaler.pt",)},
        {},
        tuple(WEIGHTS),
        ("random_states_0.pkl", "custom_checkpoint_0.pkl"),
    ),
)  # fmt: skip
