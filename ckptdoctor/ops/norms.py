"""Ops for weights kept as a direction and a size: weight_norm norm spectral_norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from ckptdoctor.ops.base import Effect, Example, Join, Shape, Unary, register, show
from ckptdoctor.ops.values import widened

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class WeightNorm(Join):
    """``weight_norm(dim)``: sources g, v; the folded weight ``v * g / |v|``.

    ``|v|`` is the 2-norm over all dimensions but ``dim``; ``dim`` = -1 means over all dimensions, with g a
    single value (what ``torch.nn.utils.weight_norm`` calls ``dim=None``). g = ``weight_g`` or ``original0``,
    v = ``weight_v`` or ``original1``. Source: Salimans and Kingma 2016, eq. 2; ``torch._weight_norm``.
    """

    dim: int

    NAME: ClassVar[str] = "weight_norm"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("weight_norm(0)", ((6, 1, 1), (6, 4, 3))),
        ("weight_norm(2)", ((1, 1, 3), (6, 4, 3))),
        ("weight_norm(-1)", ((), (4, 6))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of v."""
        if len(shapes) != 2:
            raise self.refuse(f"takes two sources, g and v, here are {len(shapes)}")
        g, v = shapes
        if not -1 <= self.dim < len(v):
            raise self.refuse(f"names dimension {self.dim}, v is {show(v)}")
        due = () if self.dim == -1 else tuple(s if d == self.dim else 1 for d, s in enumerate(v))
        if g != due:
            raise self.refuse(f"needs g of {show(due)} for v of {show(v)}, got {show(g)}")
        return v

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of v."""
        g, v = tensors
        wide = widened(v)
        return (wide * (widened(g) / size_along(wide, self.dim))).to(v.dtype)

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """The dtype of v."""
        return (dtypes[-1],)


@register
@dataclass(frozen=True)
class Norm(Unary):
    """``norm(dim)``: the 2-norm over all dimensions but ``dim``; the g of a weight-normed layer.

    A plain weight w is the weight-normed one with v = w and g = ``norm(dim)`` of w: the same function, but an
    optimizer moves it another way. ``dim`` = -1 is over all dimensions, as for ``weight_norm``. A weight
    that is zero along ``dim`` has no direction: weight_norm makes NaN of it, so it is refused.
    Source: Salimans and Kingma 2016, eq. 2; ``torch.norm_except_dim``.
    """

    dim: int

    NAME: ClassVar[str] = "norm"
    EFFECT: ClassVar[Effect] = "computed"
    PARTIAL: ClassVar[bool] = True  # the direction is not in it
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("norm(0)", ((6, 4, 3),)),
        ("norm(2)", ((6, 4, 3),)),
        ("norm(-1)", ((4, 6),)),
    )

    def shape(self, shape: Shape) -> Shape:
        """1 everywhere but along ``dim``; ``[]`` for -1."""
        if not -1 <= self.dim < len(shape) or not prod(shape):
            raise self.refuse(f"names dimension {self.dim}, the weight is {show(shape)}")
        return () if self.dim == -1 else tuple(s if d == self.dim else 1 for d, s in enumerate(shape))

    def run(self, tensor: Tensor) -> Tensor:
        """Computed in float32 at least, returned in the dtype of the weight."""
        size = size_along(widened(tensor), self.dim)
        if bool((size == 0).any()):
            raise self.refuse("meets a weight that is all zero along it, which weight_norm cannot express")
        return size.to(tensor.dtype)


def size_along(weight: Tensor, dim: int) -> Tensor:
    """The 2-norm over all dimensions but ``dim``, kept as size 1; a single value for -1."""
    import torch

    others = [d for d in range(weight.ndim) if d != dim]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=dim != -1) if others else weight.abs()


@register
@dataclass(frozen=True)
class SpectralNorm(Join):
    """``spectral_norm(dim)``: sources w, u, v; ``w / (u . W v)``, the weight in eval mode.

    W is w with ``dim`` first (1 for transposed convolutions, else 0) and the rest flattened. Old names
    ``weight_orig``, ``weight_u``, ``weight_v``; new ones ``parametrizations.weight.original``, ``0._u``,
    ``0._v``. Source: Miyato et al. 2018, eq. 8 and ``torch.nn.utils.spectral_norm``.
    """

    dim: int

    NAME: ClassVar[str] = "spectral_norm"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("spectral_norm(0)", ((5, 3, 2), (5,), (6,))),
        ("spectral_norm(1)", ((5, 3, 2), (3,), (10,))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of w."""
        if len(shapes) != 3:
            raise self.refuse(f"takes three sources, w, u and v, here are {len(shapes)}")
        w, u, v = shapes
        if not 0 <= self.dim < len(w):
            raise self.refuse(f"names dimension {self.dim}, w is {show(w)}")
        rest = prod(w[: self.dim] + w[self.dim + 1 :])
        if u != (w[self.dim],) or v != (rest,):
            raise self.refuse(f"needs u [{w[self.dim]}] and v [{rest}], got {show(u)} and {show(v)}")
        return w

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of w."""
        w, u, v = map(widened, tensors)
        matrix = w.movedim(self.dim, 0).reshape(len(u), len(v))
        return (w / (u @ (matrix @ v))).to(tensors[0].dtype)
