"""Tensors as plain values: dense ones, and comparing by bits, so that NaN equals NaN and -0.0 is not 0.0."""

from __future__ import annotations

from ctypes import string_at
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 4096  # values that are compared at once as bytes: what is around costs more
PIECE = 24 << 10  # values that are copied and compared; torch starts no threads for so few
INTEGERS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


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
    if 0 < a.numel() <= SMALL and _plain(a) and _plain(b):
        return _same_bytes(a, b)
    return _equal(_bytes(a), _bytes(b.to(a.device)))


def copied(into: Tensor, value: Tensor) -> bool:
    """Copy; whether every bit arrived. Plain memory is compared while the processor's cache still has it."""
    import torch

    if into.numel() <= SMALL and into.dtype == value.dtype and into.shape == value.shape:
        into.copy_(value)
        return _same_bytes(into, value) if _plain(into) and _plain(value) else same_bits(into, value)
    x = integers(into) if into.dtype == value.dtype and into.shape == value.shape else None
    y = integers(value) if x is not None and into.device == value.device else None
    if x is None or y is None:
        into.copy_(value)
        return same_bits(into, value if value.dtype == into.dtype else value.to(into.dtype))
    same = True
    for at in range(0, x.numel(), PIECE):
        part, due = x[at : at + PIECE], y[at : at + PIECE]
        part.copy_(due)
        same = torch.equal(part, due) and same
    return same


def _plain(tensor: Tensor) -> bool:
    """Whether its values are one range of the CPU's memory, just as they are there."""
    import torch

    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Of two plain tensors of one shape and dtype."""
    nbytes = a.numel() * a.itemsize
    return not nbytes or string_at(a.data_ptr(), nbytes) == string_at(b.data_ptr(), nbytes)


def integers(tensor: Tensor) -> Tensor | None:
    """Plain contiguous memory as a row of integers of the same size; None for any other."""
    import torch

    name = INTEGERS.get(tensor.itemsize)
    if name is None or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    if tensor.is_quantized or tensor.layout != torch.strided or tensor.is_meta:
        return None
    return tensor.detach().view(-1).view(getattr(torch, name))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Of bytes, eight at a time where their places allow it: ``torch.equal`` is that much faster then."""
    import torch

    whole = a.numel() // 8 * 8
    if a.storage_offset() % 8 or b.storage_offset() % 8 or not whole:
        return bool(torch.equal(a, b))
    words = torch.equal(a[:whole].view(torch.int64), b[:whole].view(torch.int64))
    return bool(words and torch.equal(a[whole:], b[whole:]))


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
