"""Networks as data: what a drawn example prints is what builds it again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

Style = Literal["Sequential", "ModuleList", "ModuleDict", "Part", "Residual"]


@dataclass(frozen=True)
class Layer:
    """One layer: a row of :data:`ckptdoctor.testing.layers.KINDS`, two widths, and a dtype."""

    kind: str
    width: int = 2
    other: int = 3
    dtype: str = ""  # "": as made


@dataclass(frozen=True)
class Group:
    """A module with named children, run one after the other; ``Sequential`` may have any names."""

    style: Style
    children: tuple[tuple[str, Layer | Group], ...]


@dataclass(frozen=True)
class Network:
    """A runnable model. ``ties`` and ``shared`` make one parameter or module stand at two paths."""

    root: Group
    ties: tuple[tuple[str, str], ...] = ()
    shared: tuple[tuple[str, str], ...] = ()

    def build(self, seed: int = 0) -> nn.Module:
        """A new module in eval mode. All its values, buffers too, are random and depend on ``seed``."""
        model = _made(self.root)
        for first, second in self.shared:
            parent, _, name = second.rpartition(".")
            model.get_submodule(parent).add_module(name, model.get_submodule(first))
        for first, second in self.ties:
            (a, x), (b, y) = (key.rpartition(".")[::2] for key in (first, second))
            setattr(model.get_submodule(b), y, getattr(model.get_submodule(a), x))
        fill(model, seed)
        return model.eval()


def _made(node: Layer | Group) -> nn.Module:
    import torch
    from torch import nn

    from ckptdoctor.testing.layers import KINDS, Part, Residual

    if isinstance(node, Layer):
        made = KINDS[node.kind](node.width, node.other)
        return made.to(getattr(torch, node.dtype)) if node.dtype else made
    children = OrderedDict((name, _made(child)) for name, child in node.children)
    if node.style == "Sequential":
        return nn.Sequential(children)
    if node.style == "ModuleList":
        return nn.ModuleList(children.values())
    group: nn.Module = {"ModuleDict": nn.ModuleDict, "Part": Part, "Residual": Residual}[node.style]()
    for name, child in children.items():
        group.add_module(name, child)
    return group


def fill(model: nn.Module, seed: int) -> None:
    """Random values for all that a state dict holds; variances stay positive."""
    import torch

    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(_values(key, tensor, made))
    for module in model.modules():
        if hasattr(module, "set_extra_state") and hasattr(module, "step"):
            module.set_extra_state({"step": seed + 1})


def _values(key: str, like: torch.Tensor, made: torch.Generator) -> torch.Tensor:
    import torch

    if like.is_floating_point() or like.is_complex():
        values = torch.randn(like.shape, generator=made)
        return values.abs() + 0.5 if key.endswith(("running_var", "weight_g", "original0")) else values
    if like.dtype == torch.bool:
        return torch.rand(like.shape, generator=made) > 0.5
    return torch.randint(1, 10**6, like.shape, generator=made)


def forward(model: nn.Module) -> torch.Tensor:
    """The output of a built network for a fixed input, shape (2, n)."""
    import torch

    from ckptdoctor.testing.layers import BATCH, run

    with torch.no_grad():
        return run(model, torch.linspace(-1, 1, BATCH * 7).reshape(BATCH, 7))
