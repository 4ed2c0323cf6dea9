"""Ops that rearrange one tensor and keep every value: transpose permute reshape squeeze ..."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import Example, Op, Shape, Unary, integer, ints, register, show

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Copy(Unary):
    """``copy``: the tensor as it is. The empty chain means the same.

    Source: none; it says that nothing is done.
    """

    NAME: ClassVar[str] = "copy"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("copy", ((2, 3),)), ("copy", ((),)))

    def shape(self, shape: Shape) -> Shape:
        """The same."""
        return shape

    def run(self, tensor: Tensor) -> Tensor:
        """The same tensor."""
        return tensor

    def undo(self, shape: Shape) -> Op:
        """Itself."""
        return self


@register
@dataclass(frozen=True)
class Transpose(Unary):
    """``transpose(a,b)``: swap two dimensions, e.g. GPT-2's Conv1D ``[in,out]`` <-> Linear ``[out,in]``.

    Source: ``torch.transpose``; ``Conv1D`` in transformers' ``pytorch_utils.py``.
    """

    a: int
    b: int

    NAME: ClassVar[str] = "transpose"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("transpose(0,1)", ((2, 3),)),
        ("transpose(1,-1)", ((2, 3, 4),)),
    )

    def shape(self, shape: Shape) -> Shape:
        """The two sizes swapped."""
        a, b = self._dim(self.a, shape), self._dim(self.b, shape)
        out = list(shape)
        out[a], out[b] = shape[b], shape[a]
        return tuple(out)

    def run(self, tensor: Tensor) -> Tensor:
        """A view."""
        return tensor.transpose(self.a, self.b)

    def undo(self, shape: Shape) -> Op:
        """Itself."""
        return self


@register
@dataclass(frozen=True)
class Permute(Unary):
    """``permute(2,0,1)``: result dimension j is source dimension ``order[j]`` (as ``torch.permute``).

    Kernels of TF and JAX ``[h,w,in,out]`` -> ``[out,in,h,w]`` are ``permute(3,2,0,1)``; spconv 1
    ``[k,k,k,in,out]`` -> spconv 2 ``[out,k,k,k,in]`` is ``permute(4,0,1,2,3)``.
    Source: ``torch.permute``; the layouts of ``tf.nn.conv2d`` and of spconv 2 (KRSC).
    """

    order: tuple[int, ...]

    NAME: ClassVar[str] = "permute"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("permute(3,2,0,1)", ((3, 3, 2, 5),)),
        ("permute(4,0,1,2,3)", ((3, 3, 3, 2, 4),)),
        ("permute(1,0)", ((2, 3),)),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """One integer per dimension."""
        return cls(ints(args, cls.NAME))

    def args(self) -> str:
        """The order."""
        return ",".join(map(str, self.order))

    def shape(self, shape: Shape) -> Shape:
        """Sizes in the new order."""
        if sorted(self.order) != list(range(len(shape))):
            raise self.refuse(f"must name each dimension of {show(shape)} once")
        return tuple(shape[d] for d in self.order)

    def run(self, tensor: Tensor) -> Tensor:
        """A view."""
        return tensor.permute(self.order)

    def undo(self, shape: Shape) -> Op:
        """The inverse permutation."""
        return Permute(tuple(self.order.index(d) for d in range(len(self.order))))


@register
@dataclass(frozen=True)
class Reshape(Unary):
    """``reshape(64,-1)``: same values in the same (row-major) order; one size may be -1.

    ``reshape()`` gives the shape ``[]``. A reshape is never a transpose: it moves no value past another.
    Source: ``torch.reshape``.
    """

    sizes: tuple[int, ...]

    NAME: ClassVar[str] = "reshape"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("reshape(6)", ((2, 3),)),
        ("reshape(2,-1)", ((2, 3, 4),)),
        ("reshape()", ((1,),)),
        ("reshape(4,1,1)", ((4,),)),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """Sizes."""
        return cls(ints(args, cls.NAME))

    def args(self) -> str:
        """The sizes."""
        return ",".join(map(str, self.sizes))

    def __str__(self) -> str:
        return f"{self.NAME}({self.args()})"

    def shape(self, shape: Shape) -> Shape:
        """The sizes, with -1 filled in."""
        known = prod(s for s in self.sizes if s != -1)
        free = self.sizes.count(-1)
        if free > 1 or any(s < -1 for s in self.sizes):
            raise self.refuse("needs sizes of 0 or more, with at most one -1")
        if free and (known == 0 or prod(shape) % known):
            raise self.refuse(f"does not fit a tensor {show(shape)} of {prod(shape)} values")
        out = tuple(prod(shape) // known if s == -1 else s for s in self.sizes)
        if prod(out) != prod(shape):
            raise self.refuse(f"has {prod(out)} values, the tensor {show(shape)} has {prod(shape)}")
        return out

    def run(self, tensor: Tensor) -> Tensor:
        """A view where possible, else a copy."""
        return tensor.reshape(self.sizes)

    def undo(self, shape: Shape) -> Op:
        """Reshape to the source's shape."""
        return Reshape(shape)


@register
@dataclass(frozen=True)
class Squeeze(Unary):
    """``squeeze(d)``: remove dimension d, which must have size 1 (``[1]`` -> ``[]``, 1x1 conv -> linear).

    Source: ``torch.squeeze``, which does nothing where the size is not 1; this refuses.
    """

    dim: int

    NAME: ClassVar[str] = "squeeze"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("squeeze(0)", ((1,),)), ("squeeze(-1)", ((2, 3, 1),)))

    def shape(self, shape: Shape) -> Shape:
        """Without the dimension."""
        dim = self._dim(self.dim, shape)
        if shape[dim] != 1:
            raise self.refuse(
                f"removes a dimension of size {shape[dim]} of {show(shape)}; only size 1 can go"
            )
        return shape[:dim] + shape[dim + 1 :]

    def run(self, tensor: Tensor) -> Tensor:
        """A view."""
        return tensor.squeeze(self.dim)

    def undo(self, shape: Shape) -> Op:
        """Put the dimension back."""
        return Unsqueeze(self._dim(self.dim, shape))


@register
@dataclass(frozen=True)
class Unsqueeze(Unary):
    """``unsqueeze(d)``: insert a dimension of size 1 before dimension d (``[]`` -> ``[1]``).

    Source: ``torch.unsqueeze``.
    """

    dim: int

    NAME: ClassVar[str] = "unsqueeze"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("unsqueeze(0)", ((),)), ("unsqueeze(-1)", ((2, 3),)))

    def shape(self, shape: Shape) -> Shape:
        """With the dimension."""
        dim = self._dim(self.dim, shape, extra=1)
        return (*shape[:dim], 1, *shape[dim:])

    def run(self, tensor: Tensor) -> Tensor:
        """A view."""
        return tensor.unsqueeze(self.dim)

    def undo(self, shape: Shape) -> Op:
        """Remove it."""
        return Squeeze(self._dim(self.dim, shape, extra=1))


@register
@dataclass(frozen=True)
class Blockperm(Unary):
    """``blockperm(dim;n;2,0,1)``: n equal blocks of ``dim``; result block j is source block ``order[j]``.

    Reorders packed parts: q,k,v -> v,q,k; gate,up -> up,gate; the gates of an LSTM.
    Source: ``torch.index_select`` over blocks.
    """

    dim: int
    n: int
    order: tuple[int, ...]

    NAME: ClassVar[str] = "blockperm"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("blockperm(0;3;2,0,1)", ((6, 2),)),
        ("blockperm(1;2;1,0)", ((3, 8),)),
        ("blockperm(-1;4;0,2,1,3)", ((2, 4),)),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """``dim;n;order``."""
        groups = args.split(";")
        if len(groups) != 3:
            raise PlanError(f"`{cls.NAME}` is written {cls.NAME}(dim;n;order), got `{args[:60]}`")
        dim, n, order = groups
        return cls(integer(dim, cls.NAME), integer(n, cls.NAME), ints(order, cls.NAME))

    def args(self) -> str:
        """``dim;n;order``."""
        return f"{self.dim};{self.n};{','.join(map(str, self.order))}"

    def shape(self, shape: Shape) -> Shape:
        """The same."""
        dim = self._dim(self.dim, shape)
        if len(self.order) != self.n or sorted(self.order) != list(range(self.n)):
            raise self.refuse(f"must name each of the blocks 0..{self.n - 1} once")
        if not self.n or shape[dim] % self.n:
            raise self.refuse(
                f"splits dimension {dim} of {show(shape)} into {self.n} blocks; it does not divide"
            )
        return shape

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        dim = self.dim % tensor.ndim
        size = tuple(tensor.shape)
        blocks = tensor.reshape(*size[:dim], self.n, size[dim] // self.n, *size[dim + 1 :])
        return blocks.index_select(dim, _index(self.order, tensor)).reshape(size)

    def undo(self, shape: Shape) -> Op:
        """The inverse order."""
        return Blockperm(self.dim, self.n, tuple(self.order.index(b) for b in range(self.n)))


def _index(order: tuple[int, ...], like: Tensor) -> Tensor:
    import torch

    return torch.tensor(order, dtype=torch.int64, device=like.device)
