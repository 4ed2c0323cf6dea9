"""What a new file is made of: for each key bytes to copy from another file, or a tensor to make."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from ckptdoctor.errors import ApplyError
from ckptdoctor.formats.spans import Span
from ckptdoctor.trees import DTYPE_SIZES

if TYPE_CHECKING:
    from torch import Tensor

    from ckptdoctor.formats.envelope import Envelope


@dataclass(slots=True, eq=False)
class Piece:
    """One tensor of a new file: contiguous, little-endian; copied from ``span`` where there is one."""

    shape: tuple[int, ...]
    dtype: str
    span: Span | None = None
    make: Callable[[], Tensor] | None = None
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = DTYPE_SIZES[self.dtype] * prod(self.shape)

    def content(self) -> memoryview:
        """The bytes of a tensor that is made; it lives as long as the view."""
        assert self.make is not None
        tensor = self.make()
        if tuple(tensor.shape) != self.shape or str(tensor.dtype) != f"torch.{self.dtype}":
            raise ApplyError(f"a tensor is {tensor.dtype}{list(tensor.shape)}, due {self.dtype}{self.shape}")
        plain = tensor.detach().cpu().contiguous()
        if sys.byteorder == "big":
            plain = plain.clone()
            plain.untyped_storage().byteswap(plain.dtype)
        return bytes_of(plain)


@dataclass(frozen=True)
class Contents:
    """All of a new file. One piece under several keys is one tensor in the file, where it can be."""

    pieces: Mapping[str, Piece]
    versions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # `_metadata` by module path
    objects: Mapping[str, object] = field(default_factory=dict)  # extra state that is no tensor
    envelope: Envelope | None = None  # what is around it in the file that it comes from

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces, one that has several keys counted once, and of what is in the envelope."""
        around = self.envelope.nbytes if self.envelope is not None else 0
        return around + sum(p.nbytes for p in dict.fromkeys(self.pieces.values()))


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, which stays alive with the view."""
    count = tensor.numel() * tensor.element_size()
    if not count:
        return memoryview(b"")
    array = (ctypes.c_char * count).from_address(tensor.data_ptr())
    vars(array)["tensor"] = tensor
    return memoryview(array).cast("B")
