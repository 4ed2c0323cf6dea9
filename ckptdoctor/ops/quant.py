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

    ``dequant(0)``: one scale, or one per row (``[out]`` or ``[out,1]``; ``[experts,out,1]`` for stacked
    experts). ``dequant(128)``: scale has one value per block of 128 x 128 of the last two dimensions, the
    last blocks cut (DeepSeek's ``weight_scale_inv``, which multiplies despite its name).
    Source: ``weight_dequant`` in DeepSeek-V3's ``kernel.py``; per-channel ``weight_scale`` of
    compressed-tensors.
    """

    block: int

    NAME: ClassVar[str] = "dequant"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("dequant(0)", ((4, 3), ())),
        ("dequant(0)", ((4, 3), (4, 1))),
        ("dequant(2)", ((5, 3), (3, 2))),
        ("dequant(2)", ((2, 5, 3), (2, 3, 2))),
        ("dequant(0)", ((2, 5, 3), (2, 5, 1))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of q."""
        if len(shapes) != 2:
            raise self.refuse(f"takes two sources, q and its scale, here are {len(shapes)}")
        q, scale = shapes
        if self.block < 0 or (self.block and len(q) < 2):
            raise self.refuse(f"takes a matrix in blocks, got {show(q)}")
        rows = [(), (1,), *([q[:1], (*q[:1], *[1] * (len(q) - 1)), (*q[:-1], 1)] if q else [])]
        due = [(*q[:-2], *(-(-s // self.block) for s in q[-2:]))] if self.block else list(dict.fromkeys(rows))
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
            full = scale.repeat_interleave(self.block, -2).repeat_interleave(self.block, -1)
            return q * full[..., : q.shape[-2], : q.shape[-1]]
        if scale.numel() == 1:
            return q * scale.reshape(())
        return q * (scale if scale.ndim == q.ndim else scale.reshape(-1, *[1] * (q.ndim - 1)))
