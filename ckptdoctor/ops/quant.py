"""Ops that read low-bit payloads, for which the scale is beside the weight: dequant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ckptdoctor.ops.base import Effect, Example, Join, Shape, register, show

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Dequant(Join):
    """``dequant(block)``: sources q, scale; ``q * scale`` in float32.

    ``dequant(0)``: one scale, or one per row (``[out]`` or ``[out,1]``). ``dequant(128)``: q is a matrix and
    scale has one value per block of 128 x 128, the last blocks cut (DeepSeek's ``weight_scale_inv``, which
    multiplies despite its name). Source: ``weight_dequant`` in DeepSeek-V3's ``kernel.py``.
    """

    block: int

    NAME: ClassVar[str] = "dequant"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("dequant(0)", ((4, 3), ())),
        ("dequant(0)", ((4, 3), (4, 1))),
        ("dequant(2)", ((5, 3), (3, 2))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of q."""
        if len(shapes) != 2:
            raise self.refuse(f"takes two sources, q and its scale, here are {len(shapes)}")
        q, scale = shapes
        if self.block < 0 or (self.block and len(q) != 2):
            raise self.refuse(f"takes a matrix in blocks, got {show(q)}")
        rows = [(), (1,), *([q[:1], (*q[:1], *[1] * (len(q) - 1))] if q else [])]
        due = [tuple(-(-s // self.block) for s in q)] if self.block else rows
        if scale not in due:
            raise self.refuse(
                f"needs a scale of {' or '.join(map(show, due))} for q {show(q)}, got {show(scale)}"
            )
        return q

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """float32."""
        return ("float32",)

    def run_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The two dtypes differ, as they should."""
        return [self.run(tensors)]

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """A new float32 tensor."""
        import torch

        q, scale = (t.to(torch.float32) for t in tensors)
        if self.block:
            full = scale.repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)
            return q * full[: q.shape[0], : q.shape[1]]
        per_row = scale.numel() != 1
        return q * (scale.reshape(-1, *[1] * (q.ndim - 1)) if per_row else scale.reshape(()))
