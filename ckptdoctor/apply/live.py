"""A live model as a place to write to: its keys, its tensors, and what makes a write impossible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ckptdoctor.apply.staging import Expansion, Want
from ckptdoctor.errors import ApplyError
from ckptdoctor.receipt import listing, plural
from ckptdoctor.targets.survey import Survey, slots_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def slots(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """``(full name, tensor)`` of every parameter and buffer."""
    for path, module in model.named_modules(remove_duplicate=True):
        for name, tensor in slots_in(module):
            yield (f"{path}.{name}" if path else name), tensor


def check_keys(expansion: Expansion, live: Mapping[str, Tensor]) -> None:
    """Every tensor of the model has exactly one fill. Raises :class:`ApplyError`."""
    if live.keys() == expansion.fills.keys():
        return
    missing = [key for key in live if key not in expansion.fills and not _is_extra(key)]
    foreign = [key for key in expansion.fills if key not in live]
    if missing or foreign:
        words = [f"no step fills {listing(missing)}"] if missing else []
        words += [f"the model has no {listing(foreign)}"] if foreign else []
        raise ApplyError(f"the plan is not for this model: {'; '.join(words)}. Make a new plan")


def _is_extra(key: str) -> bool:
    return key.rpartition(".")[2] == "_extra_state"


def check_meta(found: Survey, expansion: Expansion) -> None:
    """What is on meta must come from the file. Raises :class:`ApplyError` naming what cannot."""
    from ckptdoctor.apply.derived import derived_value

    live = found.tensors
    lost = list(_lost(found))
    if lost:
        raise ApplyError(
            f"the model is on the meta device, and {plural(len(lost), 'tensor')} of it cannot come from a "
            f"file (non-persistent buffers): {listing(lost)}. Build the model on the CPU, outside of "
            "`torch.device('meta')`, and load into that"
        )
    own = [k for k, fill in expansion.fills.items() if fill.kind in ("keep", "reinit") and live[k].is_meta]
    kept = [key for key in own if derived_value(key, tuple(live[key].shape)) is None]
    if kept:
        raise ApplyError(
            f"the model is on the meta device and so has no initial values to keep for {listing(kept)}; "
            "build the model on the CPU and load into that"
        )


def _lost(found: Survey) -> Iterator[str]:
    """What is on meta and in no state dict."""
    if found.plain and not any(tensor.is_meta for tensor in found.hidden.values()):
        return
    filled = {id(tensor) for tensor in found.tensors.values()}
    for name, tensor in slots(found.model):
        if tensor.is_meta and id(tensor) not in filled:
            yield name


def check_device(live: Mapping[str, Tensor], device: torch.device | str | None) -> None:
    """``device`` only says where meta tensors go. Raises :class:`ApplyError` if it asks for more."""
    import torch

    if device is None:
        return
    asked = torch.device(device)
    other = [key for key, t in live.items() if not t.is_meta and not _same_device(t.device, asked)]
    if other:
        where = live[other[0]].device
        raise ApplyError(
            f"the model is on {where}, device={str(device)!r} was asked for; tensors end where the model is. "
            f"Move it first: model.to({str(device)!r})"
        )


def _same_device(a: torch.device, b: torch.device) -> bool:
    return a.type == b.type and (b.index is None or a.index is None or a.index == b.index)


def want(tensor: Tensor, device: torch.device | str | None = None) -> Want:
    """What the place of a tensor asks for; what is on meta goes to ``device`` (default CPU)."""
    place: torch.device | str = (device or "cpu") if tensor.is_meta else tensor.device
    return Want(tuple(tensor.shape), tensor.dtype, place, _strides(tensor))


def _strides(tensor: Tensor) -> tuple[int, ...] | None:
    """Strides worth keeping: those of a dense permutation (channels last), never of an expanded tensor."""
    import torch

    if tensor.layout != torch.strided or tensor.is_contiguous() or tensor.numel() == 0:
        return None
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tuple(tensor.stride()) if span == tensor.numel() else None
