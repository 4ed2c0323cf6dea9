"""Tensors as plain values: dense ones, and comparing by bits, so that NaN equals NaN and -0.0 is not 0.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 4096  # values that are compared at once as integers of their size: what is around costs more
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
    if 0 < a.numel() <= SMALL and a.device == b.device and _is_plain(a) and _is_plain(b):
        integer = getattr(torch, INTEGERS[a.itemsize])
        return bool(torch.equal(a.view(integer), b.view(integer)))
    return _equal(_bytes(a), _bytes(b.to(a.device)))


def _is_plain(tensor: Tensor) -> bool:
    """Contiguous numbers of a size that integers have, as they are in memory."""
    size = tensor.itemsize in INTEGERS and tensor.is_contiguous()
    return size and not tensor.requires_grad and not tensor.is_conj() and not tensor.is_neg()


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
