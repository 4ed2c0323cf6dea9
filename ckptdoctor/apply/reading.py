"""The values of a plan's loads: read, made, and where each goes.

Most tensors are copied as they are. These are read one after the other and then looked at by columns; if
anything about them is unusual, or fails, each is read by itself, which finds the key and the words for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from ckptdoctor.apply.commit import Pending
from ckptdoctor.apply.direct import Places
from ckptdoctor.apply.live import want
from ckptdoctor.apply.staging import Expansion, OnTensor, Reader, make, private
from ckptdoctor.targets.survey import Survey

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


def made_values(
    expansion: Expansion,
    reader: Reader,
    places: Places,
    found: Survey,
    device: torch.device | str | None,
    on_tensor: OnTensor | None,
) -> tuple[dict[str, Tensor], Pending]:
    """What is written before the check, in memory of its own; and what is copied from the reader's after."""
    steady = getattr(reader, "steady", False)  # what it gives is nobody else's, so it need not be copied
    lends = getattr(reader, "lends", None) if device is None or str(device) == "cpu" else None
    read, whole = _read(expansion, reader, places) if steady and on_tensor is None else ({}, False)
    values: dict[str, Tensor] = {}
    pending = Pending()
    where = {look.device.type for look in found.columns.few}
    if where == {"cpu"}:
        pending = Pending({key: places.direct[key] for key in read}, read)
    elif where == {"meta"} and lends and whole and _all_fit(read, found):
        values = dict(read)
    for key, fill in expansion.fills.items():
        if fill.kind != "load" or key in pending.values or key in values:
            continue
        tensor, direct = found.tensors[key], key in places.direct
        value = read[key] if key in read else make(key, fill, reader, tensor.shape)
        if direct and not tensor.is_meta:
            pending.add(key, tensor, value if steady else private(value, want(tensor)))
        elif direct and lends and not fill.ops and _fits(value, tensor) and lends(fill.sources[0]):
            values[key] = value
        else:
            values[key] = private(value, want(tensor, device))
        if on_tensor is not None:
            on_tensor(key)
    return values, pending


def _fits(value: Tensor, tensor: Tensor) -> bool:
    """Whether the value's memory can become that of a tensor on meta."""
    return tensor.is_contiguous() and value.dtype == tensor.dtype


def _all_fit(read: dict[str, Tensor], found: Survey) -> bool:
    """The same for all, by columns."""
    wanted = map(_dtype, map(found.tensors.__getitem__, read))
    return not any(look.strides for look in found.columns.few) and list(wanted) == list(
        map(_dtype, read.values())
    )


def _read(expansion: Expansion, reader: Reader, places: Places) -> tuple[dict[str, Tensor], bool]:
    """The tensors that no op changes, from a reader that gives new ones; none where one is not as usual.

    And whether each has the memory of a whole storage in a mapped file for itself.
    """
    usual = {
        key: fill.sources[0]
        for key, fill in expansion.fills.items()
        if fill.kind == "load" and not fill.ops and len(fill.sources) == 1 and key in places.direct
    }
    all_of: Callable[[Iterable[str]], Sequence[Tensor] | None] = getattr(reader, "all_of", lambda keys: None)
    try:
        whole = all_of(usual.values())
        values = whole if whole is not None else _plain(map(reader, usual.values()))
    except Exception:
        return {}, False
    if list(map(_shape, map(places.direct.__getitem__, usual))) == list(map(_shape, values)):
        return dict(zip(usual, values, strict=True)), whole is not None
    return {}, False


def _plain(tensors: Iterable[Tensor]) -> Sequence[Tensor]:
    """Those, if all are plain memory of the CPU; else none."""
    import torch

    values = list(tensors)
    flags = map(attrgetter("is_cpu", "layout", "is_quantized", "requires_grad"), values)
    return values if set(flags) <= {(True, torch.strided, False, False)} else []
