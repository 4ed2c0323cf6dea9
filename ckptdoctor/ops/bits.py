"""Tensors as plain values: dense ones, and comparing by bits, so that NaN equals NaN and -0.0 is not 0.0."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter, not_
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 1 << 10  # bytes of a tensor that is compared together with others
PIECE = 256 << 10  # bytes that are copied and compared: small enough to stay in the processor's cache


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether shape, dtype and every bit agree; devices and strides may differ."""
    import torch

    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout or a.is_meta or b.is_meta:
        return False
    if a.is_quantized or a.layout != torch.strided:
        return (
            bool(torch.equal(a.to_dense(), b.to_dense())) if not a.is_quantized else bool(torch.equal(a, b))
        )
    if a.data_ptr() == b.data_ptr() and a.device == b.device and a.stride() == b.stride():
        return a.is_conj() == b.is_conj() and a.is_neg() == b.is_neg()
    if _plain(a) and _plain(b):
        return _same_bytes(a, b)
    x, y = _bytes(a), _bytes(b.to(a.device))
    return _same_bytes(x, y) if _plain(x) and _plain(y) else bool(torch.equal(x, y))


def copied(into: Tensor, value: Tensor) -> bool:
    """Copy; whether every bit arrived. Plain memory is compared while the processor's cache still has it."""
    job = begun(into, value)
    if job is not None:
        return copied_bytes(job)
    into.copy_(value)
    return same_bits(into, value if value.dtype == into.dtype else value.to(into.dtype))


class Copy(NamedTuple):
    """Bytes that are to be copied, as addresses."""

    into: int
    source: int
    nbytes: int


def begun(into: Tensor, value: Tensor) -> Copy | None:
    """What :func:`copied_bytes` has to copy, in any thread; None where torch has to do it, or can as well.

    The first value is copied here, which tells autograd that the tensor was written to.
    """
    nbytes = into.numel() * into.itemsize
    if nbytes <= PIECE or into.dtype != value.dtype or into.shape != value.shape:
        return None
    if not (_plain(into) and _plain(value)):
        return None
    into.view(-1)[:1].copy_(value.view(-1)[:1])
    return Copy(into.data_ptr(), value.data_ptr(), nbytes)


def copied_bytes(job: Copy) -> bool:
    """Copy a piece and compare it; whether all arrived. Other threads may run meanwhile."""
    copy, compare = _memory()
    into, source, nbytes = job
    same = True
    for at in range(0, nbytes, PIECE):
        count = min(PIECE, nbytes - at)
        copy(into + at, source + at, count)
        same = not compare(into + at, source + at, count) and same
    return same


def all_copied(into: Sequence[Tensor], values: Sequence[Tensor]) -> list[bool] | None:
    """:func:`copied` of each pair, of a few small plain ones: all are copied, and then compared.

    None, and nothing is done, where one is not so.
    """
    found = _small(into, values)
    if found is None:
        return None
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
    return list(map(not_, map(_memory()[1], *found)))


def _small(into: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[list[int], list[int], list[int]] | None:
    """Addresses and bytes, where all are small and plain, and each pair of one shape and dtype; else None."""
    import torch

    tensor, both, kind = torch.Tensor, [*into, *values], attrgetter("shape", "dtype")
    flags = attrgetter("is_cpu", "layout", "is_quantized")
    if set(map(type, both)) != {tensor} or set(map(flags, both)) != {(True, torch.strided, False)}:
        return None
    sizes = list(map(attrgetter("nbytes"), both))
    if max(sizes) > SMALL or 0 in sizes or list(map(kind, into)) != list(map(kind, values)):
        return None
    flagged = any(map(tensor.is_conj, both)) or any(map(tensor.is_neg, both))
    if flagged or not all(map(tensor.is_contiguous, both)):
        return None
    places = list(map(tensor.data_ptr, both))
    return None if 0 in places else (places[: len(into)], places[len(into) :], sizes[: len(into)])


def _plain(tensor: Tensor) -> bool:
    """Whether its values are one range of the CPU's memory, just as they are there."""
    import torch

    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
        and (tensor.data_ptr() != 0 or not tensor.numel())
    )


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Of two plain tensors of one shape and dtype."""
    return not _memory()[1](a.data_ptr(), b.data_ptr(), a.numel() * a.itemsize)


@cache
def _memory() -> tuple[Callable[[int, int, int], int], Callable[[int, int, int], int]]:
    """C's own memmove and memcmp; the latter is four times as fast as ``torch.equal``."""
    library = ctypes.CDLL("msvcrt" if os.name == "nt" else None)
    for function in (library.memmove, library.memcmp):
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    library.memmove.restype, library.memcmp.restype = ctypes.c_void_p, ctypes.c_int
    return library.memmove, library.memcmp


def dense(tensor: Tensor) -> Tensor:
    """A sparse tensor (COO, CSR, CSC, BSR, BSC) written out, which changes no value; others as they are.

    What an uncoalesced tensor has several times in one place is added up, as torch reads it.
    """
    import torch

    sparse = tensor.layout != torch.strided and not tensor.is_quantized
    return tensor.to_dense() if sparse else tensor


def _bytes(tensor: Tensor) -> Tensor:
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.stride() != (1,):  # one element counts as contiguous whatever its stride
        flat = torch.empty(flat.shape, dtype=flat.dtype, device=flat.device).copy_(flat)
    return flat.view(torch.uint8)
