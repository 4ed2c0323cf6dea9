"""Ops that take interleaved packings apart and make them again: regroup interleave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import Example, Op, Shape, Unary, integer, ints, register, show

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Grouped(Unary):
    """Dimension 0 holds ``groups`` groups, each of parts whose sizes are in the ratio ``parts``."""

    groups: int
    parts: tuple[int, ...]

    @classmethod
    def parse(cls, args: str) -> Self:
        """``groups;part,part,...``."""
        groups, semicolon, parts = args.partition(";")
        if not semicolon:
            raise PlanError(f"`{cls.NAME}` is written {cls.NAME}(groups;part,part,...), got {args[:40]!r}")
        return cls(integer(groups, cls.NAME), ints(parts, cls.NAME))

    def args(self) -> str:
        """``groups;part,part,...``."""
        return f"{self.groups};{','.join(map(str, self.parts))}"

    def shape(self, shape: Shape) -> Shape:
        """The same."""
        if self.groups < 1 or len(self.parts) < 2 or min(self.parts) < 1:
            raise self.refuse("needs one group or more, and two parts or more of one unit or more")
        if not shape or shape[0] % (self.groups * sum(self.parts)):
            raise self.refuse(
                f"splits the rows of {show(shape)} into {self.groups} groups of {sum(self.parts)} units; "
                "it does not divide"
            )
        return shape

    def sizes(self, rows: int) -> list[int]:
        """Rows of each part in one group."""
        unit = rows // (self.groups * sum(self.parts))
        return [part * unit for part in self.parts]


@register
@dataclass(frozen=True)
class Regroup(_Grouped):
    """``regroup(n;a,b,c)``: n groups ``[A B C]``, one after the other -> all A, then all B, then all C.

    Rows are dimension 0, so weights and biases take the same op; A, B and C of a group have rows in the ratio
    a:b:c. Fused q/k/v: ``regroup(heads;1,1,1)`` where every head has its q, k, v in a row (GPT-NeoX, BLOOM,
    Falcon-RW, Megatron), ``regroup(kv_heads;g,1,1)`` where every group of g query heads has its k and v after
    it (Megatron with grouped queries, InternLM2, Falcon's new decoder). Rows of gate and up in turn:
    ``regroup(n;1,1)``. The shapes are the same as those of the plain concat and prove nothing. In einops
    for equal parts: ``(n p d) ... -> (p n d) ...``.
    Source: the head splitting of transformers' ``modeling_bloom.py``, ``modeling_gpt_neox.py`` and
    ``modeling_falcon.py``; ``rearrange("b q (h gs d) -> b q h gs d")`` in InternLM2's ``InternLM2Attention``.
    """

    NAME: ClassVar[str] = "regroup"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("regroup(2;1,1,1)", ((12, 5),)),
        ("regroup(2;2,1,1)", ((16,),)),
        ("regroup(3;1,1)", ((6, 2, 2),)),
    )

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        import torch

        rest = tuple(tensor.shape[1:])
        grouped = tensor.reshape(self.groups, tensor.shape[0] // self.groups, *rest)
        parts = grouped.split_with_sizes(self.sizes(tensor.shape[0]), 1)
        return torch.cat([part.reshape(-1, *rest) for part in parts]).reshape(tensor.shape)

    def undo(self, shape: Shape) -> Op:
        """``interleave`` with the same arguments."""
        return Interleave(self.groups, self.parts)


@register
@dataclass(frozen=True)
class Interleave(_Grouped):
    """``interleave(n;a,b,c)``: all A, then all B, then all C -> n groups ``[A B C]``; undoes ``regroup``.

    q, k, v one after the other -> per head: ``concat(0)|interleave(heads;1,1,1)``; with grouped queries
    ``interleave(kv_heads;g,1,1)``. Source: as for ``regroup``.
    """

    NAME: ClassVar[str] = "interleave"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("interleave(2;1,1,1)", ((12, 5),)),
        ("interleave(2;2,1,1)", ((16,),)),
        ("concat(0)|interleave(2;4,1,1)", ((8, 3), (2, 3), (2, 3))),
    )

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        import torch

        rest = tuple(tensor.shape[1:])
        parts = tensor.split_with_sizes([self.groups * size for size in self.sizes(tensor.shape[0])])
        grouped = [
            part.reshape(self.groups, size, *rest)
            for part, size in zip(parts, self.sizes(tensor.shape[0]), strict=True)
        ]
        return torch.cat(grouped, 1).reshape(tensor.shape)

    def undo(self, shape: Shape) -> Op:
        """``regroup`` with the same arguments."""
        return Regroup(self.groups, self.parts)
