"""Ops for attention layers: rope, and the q, zero, v bias of BEiT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import Effect, Example, Join, Op, Shape, Unary, integer, register, show

if TYPE_CHECKING:
    from torch import Tensor

LAYOUTS = ("half", "interleaved")


@register
@dataclass(frozen=True)
class Rope(Unary):
    """``rope(heads;half)``: rows of q or k from interleaved rotary pairs to half-split ones.

    That is from Meta's LLaMA to transformers; ``rope(heads;interleaved)`` is the way back. Rows are
    dimension 0, so weights and biases take the same op. ``heads`` is that of the tensor:
    ``num_key_value_heads`` for k. In einops ``half`` is ``(h d two) ... -> (h two d) ...``. The shapes
    are the same on both sides and prove nothing. Source: ``permute`` in transformers'
    ``convert_llama_weights_to_hf.py``.
    """

    heads: int
    to: str

    NAME: ClassVar[str] = "rope"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("rope(2;half)", ((12, 5),)),
        ("rope(3;interleaved)", ((12,),)),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """``heads;layout``."""
        heads, _, layout = args.partition(";")
        if layout not in LAYOUTS:
            raise PlanError(
                f"`rope` is written rope(heads;half) or rope(heads;interleaved), got {args[:40]!r}"
            )
        return cls(integer(heads, cls.NAME), layout)

    def args(self) -> str:
        """``heads;layout``."""
        return f"{self.heads};{self.to}"

    def shape(self, shape: Shape) -> Shape:
        """The same."""
        if not shape or self.heads < 1 or shape[0] % (2 * self.heads):
            raise self.refuse(f"splits the rows of {show(shape)} into {self.heads} heads of pairs")
        return shape

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        pairs = tensor.shape[0] // self.heads // 2
        split = (pairs, 2) if self.to == "half" else (2, pairs)
        rest = tuple(tensor.shape[1:])
        return tensor.reshape(self.heads, *split, *rest).transpose(1, 2).reshape(tensor.shape)

    def undo(self, shape: Shape) -> Op:
        """The other layout."""
        return Rope(self.heads, "interleaved" if self.to == "half" else "half")


@register
@dataclass(frozen=True)
class ConcatZero(Join):
    """``concat_zero(dim,at)``: ``concat(dim)`` with a block of zeros, as large as a source, at ``at``.

    ``q_bias``, ``v_bias`` -> the fused ``qkv.bias`` of BEiT and EVA, whose k has no bias:
    ``concat_zero(0,1)``.
    """

    dim: int
    at: int

    NAME: ClassVar[str] = "concat_zero"
    EFFECT: ClassVar[Effect] = "computed"
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
