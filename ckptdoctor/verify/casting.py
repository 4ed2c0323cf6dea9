"""What a dtype change did to values, judged from the values themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckptdoctor.casts import CastClass, cast_class

if TYPE_CHECKING:
    from torch import Tensor

# The share of a tensor's nonzero values may become 0 before the cast counts as loss of range. A few values
# far below the scale of their tensor are ordinary rounding: trained weights always have some.
FLUSHED_SHARE = 1e-3
BLOCK = 1 << 20  # values that are looked at at once


def classify(before: Tensor, after: Tensor) -> CastClass:
    """The class of the cast that made ``after`` of ``before``; finer than ``ckptdoctor.casts.cast_class``.

    ``lossless``: casting back gives every value again. ``rounding``: finite values stayed finite, and what
    became 0 was both rare and below the rounding error of the tensor's largest value. ``range``,
    ``truncation`` and ``payload`` as in ``cast_class``.
    """
    import torch

    if before.dtype == after.dtype:
        return "lossless"
    static = cast_class(_name(before), _name(after))
    if static in ("lossless", "payload") or before.numel() == 0:
        return static
    if before.is_complex() and not after.is_complex():
        if bool(torch.count_nonzero(before.imag)):
            return "truncation"
        before = before.real
    if before.is_complex():
        return classify(torch.view_as_real(before), torch.view_as_real(after))
    if after.dtype == torch.bool:
        return "lossless" if bool(((before == 0) | (before == 1)).all()) else "truncation"
    if not after.is_floating_point():
        return _to_int(before, after)
    return _to_float(before, after)


def _blocks(before: Tensor, after: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both, a part at a time: the float64 copies below are many times as large as the tensor."""
    import torch

    parts = (torch.split(tensor.reshape(-1), BLOCK) for tensor in (before, after))
    yield from zip(*parts, strict=True)


def _to_int(before: Tensor, after: Tensor) -> CastClass:
    import torch

    limits = torch.iinfo(after.dtype)
    if before.is_floating_point():
        back = all(bool((a.to(b.dtype) == b).all()) for b, a in _blocks(before, after))
        inside = (
            bool(((b >= limits.min) & (b < float(limits.max) + 1)).all()) for b, _ in _blocks(before, after)
        )
        return "lossless" if back and all(inside) else "truncation"
    low, high = int(before.min()), int(before.max())
    return "lossless" if limits.min <= low and high <= limits.max else "range"


def _to_float(before: Tensor, after: Tensor) -> CastClass:
    import torch

    info = torch.finfo(after.dtype)
    exact, rounded, flushed = True, False, _Flushed()
    for b, a in _blocks(before, after):
        old, new = b.to(torch.float64), a.to(torch.float64)
        beyond = old.abs() > info.max * (1 + info.eps)  # fp8 casts may stop at the largest value, not at inf
        if bool((torch.isfinite(old) & (~torch.isfinite(new) | beyond)).any()):
            return "range"
        rounded = rounded or (not b.is_floating_point() and bool((a.to(b.dtype) != b).any()))
        exact = exact and bool(((old == new) | (torch.isnan(old) & torch.isnan(new))).all())
        flushed.add(old, new)
    if rounded:
        return "rounding"
    if exact:
        return "lossless"
    return "range" if flushed.matters(info.eps) else "rounding"


class _Flushed:
    """Values that became 0: how many, of how many, and how large."""

    def __init__(self) -> None:
        self.count = self.nonzero = 0
        self.largest = self.largest_lost = 0.0

    def add(self, old: Tensor, new: Tensor) -> None:
        """One more part."""
        import torch

        lost = (old != 0) & (new == 0)
        count = int(lost.sum())
        finite = torch.where(torch.isfinite(old), old.abs(), torch.zeros_like(old))
        self.count += count
        self.nonzero += int((old != 0).sum())
        self.largest = max(self.largest, float(finite.max()))
        if count:
            self.largest_lost = max(self.largest_lost, float(finite[lost].max()))

    def matters(self, eps: float) -> bool:
        """Whether so much became 0 that it matters."""
        if not self.count:
            return False
        return self.count > FLUSHED_SHARE * self.nonzero or self.largest_lost > eps * self.largest


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
