"""Networks for images: Swin, DINOv2, FLUX."""

from typing import Any

import torch
from torch import Tensor

from tests.recipes.applier import convert
from tests.recipes.case import Case, Transformers, Written
from tests.recipes.models import dinov2 as dinov2_model
from tests.recipes.models import flux
from tests.recipes.models import swin as swin_model

IMAGE = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SWIN_CONFIG = {
    "image_size": 32,
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 3],
    "window_size": swin_model.WINDOW,
    "num_labels": 5,
}
SWIN = Transformers("SwinForImageClassification", **SWIN_CONFIG)
DINO_CONFIG = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "use_swiglu_ffn": True,
    "image_size": 28,
    "patch_size": 14,
}


def swin_openmmlab(state: dict[str, Tensor]) -> Tensor:
    return swin_model.forward(state, IMAGE, swin_model.OPENMMLAB, [2, 3], "head.fc")


def swin(recipe: str, title: str, names: Any, head: str) -> Case:
    """mmpretrain's classifier on side a; the state dict of b comes through transformers' Swin."""
    roots = {"a": "backbone.", "b": "swin."}

    def state() -> dict[str, Tensor]:
        a = convert("swin-openmmlab-transformers", "b", SWIN.state(), {}, roots)
        return convert(recipe, "a", a, {}, {"a": "backbone.", "b": ""})

    def b(state: dict[str, Tensor]) -> Tensor:
        return swin_model.forward(state, IMAGE, names, [2, 3], head)

    return Case(recipe, title, swin_openmmlab, b, state, {}, "backbone.")


def swin_transformers(recipe: str, b: Transformers) -> Case:
    def run(state: dict[str, Tensor]) -> Tensor:
        return b.run(state, IMAGE).logits

    return Case(recipe, "a classifier", swin_openmmlab, run, b.state, {}, "backbone.", "swin.")


def dinov2(recipe: str, b: Transformers, **names: Any) -> Case:
    image = IMAGE[:, :, :28, :28]

    def a(state: dict[str, Tensor]) -> Tensor:
        return dinov2_model.forward(state, image, 3, **names)

    def run(state: dict[str, Tensor]) -> Tensor:
        return b.run(state, image).last_hidden_state

    return Case(recipe, "a small ViT", a, run, b.state, {}, plain=True)


CASES = [
    swin_transformers("swin-openmmlab-transformers", SWIN),
    swin_transformers("swin-openmmlab-transformers-4", Written("SwinForImageClassification", **SWIN_CONFIG)),
    swin("swin-openmmlab", "a classifier", swin_model.OFFICIAL, "head"),
    swin("swin-openmmlab-timm", "a classifier", swin_model.TIMM, "head.fc"),
    dinov2("dinov2-giant", Transformers("Dinov2Model", **DINO_CONFIG)),
    dinov2("dinov2-giant-transformers-4", Written("Dinov2Model", **DINO_CONFIG)),
    dinov2("dinov2-giant-timm", Transformers("Dinov2Model", **DINO_CONFIG), mlp=("fc1", "fc2")),
    Case(
        "flux-diffusers",
        "two double and two single blocks",
        lambda s: flux.bfl(s, flux.inputs()),
        lambda s: flux.diffusers(s, flux.inputs()),
        lambda: {k: torch.zeros(shape, dtype=torch.float64) for k, shape in flux.shapes().items()},
        {},
    ),
]
