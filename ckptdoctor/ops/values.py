"""Ops that compute values: sumdim mul add cast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import Effect, Example, Join, Shape, Unary, register, show
from ckptdoctor.trees import DTYPE_SIZES

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Sumdim(Unary):
    """``sumdim(d)``: sum over dimension d, which stays with size 1 (a 3-channel stem -> 1 channel).

    The convention of timm's ``adapt_input_conv`` (``weight.sum(dim=1, keepdim=True)``). Summed
    in float32 for half precision. Lossy. Source: ``adapt_input_conv`` of timm.
    """

    dim: int

    NAME: ClassVar[str] = "sumdim"
    EFFECT: ClassVar[Effect] = "lossy"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("sumdim(1)", ((4, 3, 2, 2),)), ("sumdim(-1)", ((2, 3),)))

    def shape(self, shape: Shape) -> Shape:
        """The dimension becomes 1."""
        dim = self._dim(self.dim, shape)
        return (*shape[:dim], 1, *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """A new tensor of the same dtype."""
        return widened(tensor).sum(self.dim, keepdim=True).to(tensor.dtype)


@register
@dataclass(frozen=True)
class Mul(Join):
    """``mul``: the product of all sources, element by element (pruning: ``weight_orig``, ``weight_mask``).

    Shapes must be equal. Source: ``torch.nn.utils.prune``, ``apply_mask``.
    """

    NAME: ClassVar[str] = "mul"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("mul", ((2, 3), (2, 3))),)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of every source."""
        if len(set(shapes)) != 1:
            raise self.refuse(f"multiplies {', '.join(map(show, shapes))}; all must be equal")
        return shapes[0]

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """A new tensor."""
        out = tensors[0]
        for other in tensors[1:]:
            out = out * other
        return out


@register
@dataclass(frozen=True)
class Add(Unary):
    """``add(x)``: a constant added to every value (RMSNorm weights stored as ``1 + w`` or as ``w``, Gemma).

    Computed in float32 for half precision. Not bit-exact to undo, so it has no inverse.
    Source: ``GemmaRMSNorm`` of transformers, which multiplies by ``1 + weight``.
    """

    value: float

    NAME: ClassVar[str] = "add"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("add(1)", ((4,),)), ("add(-0.5)", ((2, 2),)))

    @classmethod
    def parse(cls, args: str) -> Self:
        """One finite number."""
        return cls(number(args, cls.NAME))

    def args(self) -> str:
        """The number."""
        return f"{self.value:g}" if float(f"{self.value:g}") == self.value else repr(self.value)

    def shape(self, shape: Shape) -> Shape:
        """The same."""
        return shape

    def run(self, tensor: Tensor) -> Tensor:
        """A new tensor of the same dtype."""
        return (widened(tensor) + self.value).to(tensor.dtype)


@register
@dataclass(frozen=True)
class Cast(Unary):
    """``cast(float16)``: another dtype, e.g. before a join.

    The model's own dtype needs no op: apply casts to it. Source: ``torch.Tensor.to``.
    """

    to: str

    NAME: ClassVar[str] = "cast"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("cast(float32)", ((2, 3),)), ("cast(bfloat16)", ((2,),)))

    @classmethod
    def parse(cls, args: str) -> Self:
        """A torch dtype without ``torch.``."""
        if args not in DTYPE_SIZES:
            raise PlanError(f"`cast` takes a torch dtype like float16, got {args[:40]!r}")
        return cls(args)

    def shape(self, shape: Shape) -> Shape:
        """The same."""
        return shape

    def dtype(self, dtype: str) -> str:
        """The new dtype."""
        return self.to

    def run(self, tensor: Tensor) -> Tensor:
        """A copy, unless it has the dtype already."""
        import torch

        return tensor.to(getattr(torch, self.to))


def widened(tensor: Tensor) -> Tensor:
    """Half-precision and 8-bit floats as float32; everything else as it is."""
    import torch

    small = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.to(torch.float32) if small else tensor


def number(text: str, name: str) -> float:
    """One finite decimal number. Raises :class:`PlanError`."""
    try:
        value = float(text) if text.isascii() and len(text) < 40 and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise PlanError(f"`{name}` takes one finite number, got {text[:40]!r}")
    return value
