"""What a dtype change did to values, judged from the values themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptdoctor.casts import CastClass, cast_class

if TYPE_CHECKING:
    from torch import Tensor

# The share of a tensor's nonzero values may become 0 before the cast counts as loss of range. A few values
# far below the scale of their tensor are ordinary rounding: trained weights always have some.
FLUSHED_SHARE = 1e-3


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


def _to_int(before: Tensor, after: Tensor) -> CastClass:
    import torch

    limits = torch.iinfo(after.dtype)
    if before.is_floating_point():
        back = bool((after.to(before.dtype) == before).all())
        inside = bool(((before >= limits.min) & (before < float(limits.max) + 1)).all())
        return "lossless" if back and inside else "truncation"
    low, high = int(before.min()), int(before.max())
    return "lossless" if limits.min <= low and high <= limits.max else "range"


def _to_float(before: Tensor, after: Tensor) -> CastClass:
    import torch

    wide = torch.float64
    old, new = before.to(wide), after.to(wide)
    info = torch.finfo(after.dtype)
    beyond = old.abs() > info.max * (1 + info.eps)  # fp8 casts may stop at the largest value instead of inf
    if bool((torch.isfinite(old) & (~torch.isfinite(new) | beyond)).any()):
        return "range"
    if not before.is_floating_point() and bool((after.to(before.dtype) != before).any()):
        return "rounding"
    if bool(((old == new) | (torch.isnan(old) & torch.isnan(new))).all()):
        return "lossless"
    return "range" if _flushed(old, new, info.eps) else "rounding"


def _flushed(old: Tensor, new: Tensor, eps: float) -> bool:
    """Whether so much became 0 that it matters."""
    import torch

    lost = (old != 0) & (new == 0)
    count = int(lost.sum())
    if count == 0:
        return False
    finite = torch.where(torch.isfinite(old), old.abs(), torch.zeros_like(old))
    return count > FLUSHED_SHARE * int((old != 0).sum()) or float(finite[lost].max()) > eps * float(
        finite.max()
    )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
