"""Ops that compute or invent values: pad sumdim weight_norm cast add mul."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import LIMIT, Effect, Example, Join, Shape, Unary, ints, register, show
from ckptdoctor.trees import DTYPE_SIZES

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Pad(Unary):
    """``pad(dim,size)``: zeros appended along ``dim`` until it has ``size`` (a vocabulary of 50257 -> 50304).

    Lossy, because the new rows are invented: needs a decision.
    """

    dim: int
    size: int

    NAME: ClassVar[str] = "pad"
    EFFECT: ClassVar[Effect] = "lossy"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("pad(0,5)", ((3, 2),)), ("pad(-1,2)", ((3, 2),)))

    def shape(self, shape: Shape) -> Shape:
        """The dimension grown."""
        dim = self._dim(self.dim, shape)
        if self.size < shape[dim]:
            raise self.refuse(f"is smaller than dimension {dim} of {show(shape)}; cut rows with slice")
        if self.size * math.prod(shape[:dim] + shape[dim + 1 :]) > LIMIT:
            raise self.refuse(f"makes a tensor of absurd size from {show(shape)}")
        return (*shape[:dim], self.size, *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        out = tensor.new_zeros(self.shape(tuple(tensor.shape)))
        out.narrow(self.dim, 0, tensor.shape[self.dim]).copy_(tensor)
        return out


@register
@dataclass(frozen=True)
class Sumdim(Unary):
    """``sumdim(d)``: sum over dimension d, which stays with size 1 (a 3-channel stem -> 1 channel).

    The convention of timm's ``adapt_input_conv`` (``weight.sum(dim=1, keepdim=True)``). Summed
    in float32 for half precision. Lossy.
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
        import torch

        g, v = tensors
        wide = widened(v)
        others = [d for d in range(v.ndim) if d != self.dim]
        norm = torch.linalg.vector_norm(wide, dim=others, keepdim=self.dim != -1) if others else wide.abs()
        return (wide * (widened(g) / norm)).to(v.dtype)

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """The dtype of v."""
        return (dtypes[-1],)


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

    The model's own dtype needs no op: apply casts to it.
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


@register
@dataclass(frozen=True)
class Take(Unary):
    """``take(dim;4,0,7)``: these elements along ``dim``, in this order (10 of 1000 classes). Lossy."""

    dim: int
    rows: tuple[int, ...]

    NAME: ClassVar[str] = "take"
    EFFECT: ClassVar[Effect] = "lossy"
    PARTIAL: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("take(0;2,0)", ((4, 3),)), ("take(1;1)", ((2, 3),)))

    @classmethod
    def parse(cls, args: str) -> Self:
        """``dim;rows``."""
        dim, semicolon, rows = args.partition(";")
        if not semicolon:
            raise PlanError(f"`take` is written take(dim;row,row,...), got {args[:40]!r}")
        return cls(ints(dim, cls.NAME, 1)[0], ints(rows, cls.NAME))

    def args(self) -> str:
        """``dim;rows``."""
        return f"{self.dim};{','.join(map(str, self.rows))}"

    def shape(self, shape: Shape) -> Shape:
        """The dimension counts the rows."""
        dim = self._dim(self.dim, shape)
        if not self.rows or len(set(self.rows)) != len(self.rows):
            raise self.refuse("must name at least one row, each once")
        if not all(0 <= r < shape[dim] for r in self.rows):
            raise self.refuse(f"names a row outside dimension {dim} of {show(shape)}")
        return (*shape[:dim], len(self.rows), *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        import torch

        return tensor.index_select(self.dim, torch.tensor(self.rows, device=tensor.device))


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
