"""Ops that take tensors apart and put them together: chunk slice select concat stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ckptdoctor.ops.base import Example, Join, Op, Shape, Unary, register, show

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Chunk(Unary):
    """``chunk(dim,i,n)``: part i of n equal parts along ``dim`` (the q, k or v of a fused qkv).

    Unlike ``torch.chunk`` the size must divide by n; unequal parts are written with ``slice``.
    Source: ``torch.narrow``.
    """

    dim: int
    i: int
    n: int

    NAME: ClassVar[str] = "chunk"
    PARTIAL: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("chunk(0,1,3)", ((6, 2),)), ("chunk(-1,0,2)", ((3, 4),)))

    def shape(self, shape: Shape) -> Shape:
        """The dimension divided by n."""
        dim = self._dim(self.dim, shape)
        if not 0 <= self.i < self.n:
            raise self.refuse(f"asks for part {self.i} of {self.n}; parts are counted from 0")
        if shape[dim] % self.n:
            raise self.refuse(f"splits dimension {dim} of {show(shape)} into {self.n}; it does not divide")
        return (*shape[:dim], shape[dim] // self.n, *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """A view."""
        size = tensor.shape[self.dim] // self.n
        return tensor.narrow(self.dim, self.i * size, size)


@register
@dataclass(frozen=True)
class Slice(Unary):
    """``slice(dim,from,to)``: elements from (counted) to to (not counted) along ``dim``, never clipped.

    Unequal parts (q, k, v with grouped queries), or a padded vocabulary cropped. Source: ``torch.narrow``.
    """

    dim: int
    start: int
    stop: int

    NAME: ClassVar[str] = "slice"
    PARTIAL: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("slice(0,1,3)", ((4, 2),)), ("slice(-1,0,1)", ((3, 2),)))

    def shape(self, shape: Shape) -> Shape:
        """The dimension cut."""
        dim = self._dim(self.dim, shape)
        if not 0 <= self.start <= self.stop <= shape[dim]:
            raise self.refuse(f"lies outside dimension {dim} of {show(shape)}")
        return (*shape[:dim], self.stop - self.start, *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """A view."""
        return tensor.narrow(self.dim, self.start, self.stop - self.start)


@register
@dataclass(frozen=True)
class Select(Unary):
    """``select(dim,i)``: element i along ``dim``, which disappears (one expert of a stack).

    Source: ``torch.select``.
    """

    dim: int
    i: int

    NAME: ClassVar[str] = "select"
    PARTIAL: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("select(0,1)", ((4, 2),)), ("select(1,2)", ((2, 3, 4),)))

    def shape(self, shape: Shape) -> Shape:
        """Without the dimension."""
        dim = self._dim(self.dim, shape)
        if not 0 <= self.i < shape[dim]:
            raise self.refuse(f"asks for element {self.i} of dimension {dim} of {show(shape)}")
        return shape[:dim] + shape[dim + 1 :]

    def run(self, tensor: Tensor) -> Tensor:
        """A view."""
        return tensor.select(self.dim, self.i)


@register
@dataclass(frozen=True)
class Concat(Join):
    """``concat(dim)``: sources one after the other along ``dim`` (q, k, v -> fused qkv).

    Source: ``torch.cat``; ``in_proj_weight`` of ``torch.nn.MultiheadAttention``.
    """

    dim: int

    NAME: ClassVar[str] = "concat"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("concat(0)", ((2, 3), (4, 3), (1, 3))),
        ("concat(-1)", ((2, 3), (2, 1))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The sizes along ``dim`` added; all other sizes must agree."""
        first = shapes[0]
        dim = self._axis(shapes)
        for other in shapes:
            if other[:dim] + other[dim + 1 :] != first[:dim] + first[dim + 1 :] or len(other) != len(first):
                raise self.refuse(f"joins {', '.join(map(show, shapes))}; all other dimensions must agree")
        return (*first[:dim], sum(s[dim] for s in shapes), *first[dim + 1 :])

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """A copy."""
        import torch

        return torch.cat(list(tensors), self.dim)

    def undo_all(self, shapes: Sequence[Shape]) -> tuple[tuple[Op, ...], ...]:
        """A chunk for each source when all are equal, else a slice."""
        dim = self._axis(shapes)
        if len({s[dim] for s in shapes}) == 1:
            return tuple((Chunk(dim, i, len(shapes)),) for i in range(len(shapes)))
        ends = [sum(s[dim] for s in shapes[: i + 1]) for i in range(len(shapes))]
        return tuple((Slice(dim, end - s[dim], end),) for s, end in zip(shapes, ends, strict=True))

    def _axis(self, shapes: Sequence[Shape]) -> int:
        rank = min(map(len, shapes))
        if not -rank <= self.dim < rank:
            raise self.refuse(f"names dimension {self.dim}, the sources are {', '.join(map(show, shapes))}")
        return self.dim % len(shapes[0])


@register
@dataclass(frozen=True)
class Stack(Join):
    """``stack(dim)``: equal sources along a new dimension (a list of experts -> one tensor).

    Source: ``torch.stack``.
    """

    dim: int

    NAME: ClassVar[str] = "stack"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("stack(0)", ((2, 3), (2, 3))),
        ("stack(-1)", ((2,), (2,), (2,))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """A new dimension that counts the sources."""
        if len(set(shapes)) != 1:
            raise self.refuse(f"joins {', '.join(map(show, shapes))}; all must be equal")
        dim = self._axis(shapes)
        return (*shapes[0][:dim], len(shapes), *shapes[0][dim:])

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """A copy; mixed floating dtypes are promoted, as ``concat`` does."""
        import torch

        return torch.cat([t.unsqueeze(self.dim) for t in tensors], self.dim)

    def undo_all(self, shapes: Sequence[Shape]) -> tuple[tuple[Op, ...], ...]:
        """A select for each source."""
        dim = self._axis(shapes)
        return tuple((Select(dim, i),) for i in range(len(shapes)))

    def _axis(self, shapes: Sequence[Shape]) -> int:
        rank = len(shapes[0]) + 1
        if not -rank <= self.dim < rank:
            raise self.refuse(f"names dimension {self.dim}, the sources are {show(shapes[0])}")
        return self.dim % rank
