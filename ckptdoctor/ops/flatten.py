"""Ops for the order in which axes were flattened or numbers paired: flatten_order as_real as_complex."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import Example, Op, Shape, Unary, integer, ints, register, show

if TYPE_CHECKING:
    from torch import Tensor

MAX_AXES = 6


@register
@dataclass(frozen=True)
class FlattenOrder(Unary):
    """``flatten_order(dim;chw;64,3,3;hwc)``: the order in which ``dim`` was flattened, changed.

    The letters name the axes, the sizes are theirs in the first order. A linear layer behind a flatten has
    its columns in the order in which the image was flattened: (C,H,W) in torch, (H,W,C) in TF and JAX,
    (W,H,C) in facenet-pytorch's MTCNN, whose ``dense4`` becomes fdet's by
    ``flatten_order(1;whc;3,3,64;cwh)``. Swin's ``reduction`` (four neighbours p of C channels) of the
    official code -> mmdet is ``blockperm(1;4;0,2,1,3)|flatten_order(1;pc;4,C;cp)``. In einops
    ``flatten_order(1;chw;64,3,3;hwc)`` is ``o (c h w) -> o (h w c)``. Shapes are the same and prove nothing.
    Source: row-major order of ``torch.flatten``; ``correct_unfold_reduction_order`` of mmdet's ``swin.py``.
    """

    dim: int
    axes: str
    sizes: tuple[int, ...]
    to: str

    NAME: ClassVar[str] = "flatten_order"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("flatten_order(1;whc;2,3,4;cwh)", ((5, 24),)),
        ("flatten_order(0;pc;4,3;cp)", ((12,),)),
        ("flatten_order(-1;cdhw;2,1,2,3;dhwc)", ((2, 12),)),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """``dim;axes;sizes;axes``."""
        groups = args.split(";")
        letters = [groups[i] for i in (1, 3) if len(groups) == 4]
        if not letters or not all(text.isascii() and text.isalpha() and text.islower() for text in letters):
            raise PlanError(f"`{cls.NAME}` is written {cls.NAME}(dim;chw;64,3,3;hwc), got {args[:60]!r}")
        made = cls(integer(groups[0], cls.NAME), groups[1], ints(groups[2], cls.NAME), groups[3])
        if len(set(made.axes)) != len(made.axes) or sorted(made.axes) != sorted(made.to):
            raise PlanError(f"`{cls.NAME}` needs the same letters before and after, each once: {args[:60]!r}")
        if not 2 <= len(made.axes) <= MAX_AXES or len(made.sizes) != len(made.axes) or min(made.sizes) < 1:
            raise PlanError(f"`{cls.NAME}` needs a size of 1 or more for each of its axes, got {args[:60]!r}")
        return made

    def args(self) -> str:
        """As :meth:`parse` reads it."""
        return f"{self.dim};{self.axes};{','.join(map(str, self.sizes))};{self.to}"

    def shape(self, shape: Shape) -> Shape:
        """The same."""
        dim = self._dim(self.dim, shape)
        if shape[dim] != prod(self.sizes):
            raise self.refuse(f"has {prod(self.sizes)} places, dimension {dim} of {show(shape)} does not")
        return shape

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        dim, size = self.dim % tensor.ndim, tuple(tensor.shape)
        apart = tensor.reshape(*size[:dim], *self.sizes, *size[dim + 1 :])
        order = [dim + self.axes.index(letter) for letter in self.to]
        behind = range(dim + len(order), apart.ndim)
        return apart.permute(*range(dim), *order, *behind).reshape(size)

    def undo(self, shape: Shape) -> Op:
        """The other way."""
        sizes = tuple(self.sizes[self.axes.index(letter)] for letter in self.to)
        return FlattenOrder(self.dim, self.to, sizes, self.axes)


# The dtypes that complex numbers are made of.
REAL = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}


@register
@dataclass(frozen=True)
class AsReal(Unary):
    """``as_real``: complex numbers as pairs of a real and an imaginary part in a new last dimension.

    ``freqs_cis`` of shape [n, d] in complex64 -> [n, d, 2] in float32. A cast would drop the imaginary part.
    Source: ``torch.view_as_real``.
    """

    NAME: ClassVar[str] = "as_real"
    TAKES: ClassVar[str] = "complex64"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("as_real", ((3, 2),)), ("as_real", ((),)))

    def shape(self, shape: Shape) -> Shape:
        """With a last dimension of 2."""
        return (*shape, 2)

    def dtype(self, dtype: str) -> str:
        """That of the parts."""
        if dtype not in REAL:
            raise self.refuse(f"takes complex numbers, got {dtype}")
        return REAL[dtype]

    def run(self, tensor: Tensor) -> Tensor:
        """A view, or a copy of a lazily conjugated tensor."""
        import torch

        self.dtype(str(tensor.dtype).removeprefix("torch."))
        return torch.view_as_real(tensor.resolve_conj())

    def undo(self, shape: Shape) -> Op:
        """The way back."""
        return AsComplex()


@register
@dataclass(frozen=True)
class AsComplex(Unary):
    """``as_complex``: pairs in the last dimension as complex numbers; undoes ``as_real``.

    Source: ``torch.view_as_complex``.
    """

    NAME: ClassVar[str] = "as_complex"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("as_complex", ((3, 2),)), ("as_complex", ((2,),)))

    def shape(self, shape: Shape) -> Shape:
        """Without the last dimension, which must be 2."""
        if not shape or shape[-1] != 2:
            raise self.refuse(f"needs pairs in the last dimension, got {show(shape)}")
        return shape[:-1]

    def dtype(self, dtype: str) -> str:
        """The complex dtype of such parts."""
        found = [name for name, real in REAL.items() if real == dtype]
        if not found:
            raise self.refuse(f"takes float16, float32 or float64, got {dtype}")
        return found[0]

    def run(self, tensor: Tensor) -> Tensor:
        """A view where the pairs lie together, else a copy."""
        import torch

        self.dtype(str(tensor.dtype).removeprefix("torch."))
        return torch.view_as_complex(tensor.contiguous())

    def undo(self, shape: Shape) -> Op:
        """The way back."""
        return AsReal()
