"""Ops for attention layers: rope, and the q, zero, v bias of BEiT: concat_zero chunk_zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import Example, Join, Op, Shape, Unary, integer, register, show

if TYPE_CHECKING:
    from torch import Tensor

LAYOUTS = ("half", "interleaved")


@register
@dataclass(frozen=True)
class Rope(Unary):
    """``rope(heads;half)``: rows of q or k from interleaved rotary pairs to half-split ones.

    That is from Meta's LLaMA to transformers; ``rope(heads;interleaved)`` is the way back. Rows are
    dimension 0, so weights and biases take the same op. ``heads`` is that of the tensor:
    ``num_key_value_heads`` for k. ``rope(heads;half;r)`` moves only the first r rows of each head and leaves
    the others where they are (partial rotary: ``rotary_dim`` of GPT-J, ``rotary_ndims`` of GPT-NeoX). In
    einops ``half`` is ``(h d two) ... -> (h two d) ...``. The shapes are the same on both sides and prove
    nothing.
    Source: ``permute`` in transformers' ``convert_llama_weights_to_hf.py``.
    """

    heads: int
    to: str
    rotary: int = 0  # 0: all rows of a head

    NAME: ClassVar[str] = "rope"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("rope(2;half)", ((12, 5),)),
        ("rope(3;interleaved)", ((12,),)),
        ("rope(2;half;4)", ((14, 3),)),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """``heads;layout`` and maybe ``;rows``."""
        heads, _, rest = args.partition(";")
        layout, semicolon, rows = rest.partition(";")
        if layout not in LAYOUTS:
            raise PlanError(
                f"`rope` is written rope(heads;half) or rope(heads;interleaved), maybe with ;rows, "
                f"got {args[:40]!r}"
            )
        made = cls(integer(heads, cls.NAME), layout, integer(rows, cls.NAME) if semicolon else 0)
        if semicolon and made.rotary < 1:
            raise PlanError(f"`rope` needs two rotary rows or more, got {args[:40]!r}")
        return made

    def args(self) -> str:
        """As :meth:`parse` reads it."""
        return f"{self.heads};{self.to}" + (f";{self.rotary}" if self.rotary else "")

    def shape(self, shape: Shape) -> Shape:
        """The same."""
        if not shape or self.heads < 1 or shape[0] % self.heads:
            raise self.refuse(f"splits the rows of {show(shape)} into {self.heads} heads")
        head = shape[0] // self.heads
        rows = self.rotary or head
        if rows > head or rows % 2:
            raise self.refuse(f"splits {rows} rows of each head of {head} into pairs, in {show(shape)}")
        return shape

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        import torch

        rest = tuple(tensor.shape[1:])
        heads = tensor.reshape(self.heads, tensor.shape[0] // self.heads, *rest)
        rows = self.rotary or heads.shape[1]
        split = (rows // 2, 2) if self.to == "half" else (2, rows // 2)
        turned = heads[:, :rows].reshape(self.heads, *split, *rest).transpose(1, 2)
        turned = turned.reshape(self.heads, rows, *rest)
        return torch.cat([turned, heads[:, rows:]], 1).reshape(tensor.shape)

    def undo(self, shape: Shape) -> Op:
        """The other layout."""
        return Rope(self.heads, "interleaved" if self.to == "half" else "half", self.rotary)


@register
@dataclass(frozen=True)
class ConcatZero(Join):
    """``concat_zero(dim,at)``: ``concat(dim)`` with a block of zeros, as large as a source, at ``at``.

    ``q_bias``, ``v_bias`` -> the fused ``qkv.bias`` of BEiT and EVA, whose k has no bias:
    ``concat_zero(0,1)``. Undone by ``chunk_zero``. Source: ``Attention.forward`` in BEiT's
    ``modeling_finetune.py``.
    """

    dim: int
    at: int

    NAME: ClassVar[str] = "concat_zero"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("concat_zero(0,1)", ((4,), (4,))),
        ("concat_zero(1,0)", ((2, 4),)),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The sizes along ``dim`` added, the zeros counted."""
        if len(set(shapes)) != 1 or not 0 <= self.dim < len(shapes[0]):
            raise self.refuse(
                f"joins {', '.join(map(show, shapes))}; all must be equal and have dimension {self.dim}"
            )
        if not 0 <= self.at <= len(shapes):
            raise self.refuse(f"puts the zeros at position {self.at} of {len(shapes) + 1}")
        size = shapes[0][self.dim] * (len(shapes) + 1)
        return (*shapes[0][: self.dim], size, *shapes[0][self.dim + 1 :])

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """A copy."""
        import torch

        parts = list(tensors)
        parts.insert(self.at, torch.zeros_like(parts[0]))
        return torch.cat(parts, self.dim)

    def undo_all(self, shapes: Sequence[Shape]) -> tuple[tuple[Op, ...], ...]:
        """A chunk for each source, which checks the zeros."""
        n = len(shapes) + 1
        return tuple((ChunkZero(self.dim, i, n, self.at),) for i in range(n) if i != self.at)


@register
@dataclass(frozen=True)
class ChunkZero(Unary):
    """``chunk_zero(dim,i,n,z)``: part i of n equal parts along ``dim``, if part z is exactly zero.

    The fused ``qkv.bias`` -> ``q_bias`` of BEiT (``chunk_zero(0,0,3,1)``) and ``v_bias``
    (``chunk_zero(0,2,3,1)``), which have no place for a k. Values decide whether that loses anything, so
    it is refused when the op runs, before anything is loaded: a k bias that is not zero must not go. Together
    these parts undo ``concat_zero``. Source: as for ``concat_zero``.
    """

    dim: int
    i: int
    n: int
    zero: int

    NAME: ClassVar[str] = "chunk_zero"
    PARTIAL: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("concat_zero(0,1)|chunk_zero(0,2,3,1)", ((4,), (4,))),
        ("concat_zero(1,0)|chunk_zero(-1,1,3,0)", ((2, 4), (2, 4))),
    )

    def shape(self, shape: Shape) -> Shape:
        """The dimension divided by n."""
        dim = self._dim(self.dim, shape)
        if not (0 <= self.i < self.n and 0 <= self.zero < self.n and self.i != self.zero):
            raise self.refuse(f"asks for part {self.i} beside part {self.zero} of {self.n}, counted from 0")
        if shape[dim] % self.n:
            raise self.refuse(f"splits dimension {dim} of {show(shape)} into {self.n}; it does not divide")
        return (*shape[:dim], shape[dim] // self.n, *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """A view."""
        size = tensor.shape[self.dim] // self.n
        left_out = tensor.narrow(self.dim, self.zero * size, size)
        if bool((left_out != 0).any()):
            raise self.refuse(
                f"leaves part {self.zero} of {show(tuple(tensor.shape))} out, which is not zero "
                f"(largest value {float(left_out.abs().max()):g}): the model has no place for it"
            )
        return tensor.narrow(self.dim, self.i * size, size)
