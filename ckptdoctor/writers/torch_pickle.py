"""The ``data.pkl`` of a state dict, as ``torch.save`` writes it: protocol 2, without pickling anything.

The opcodes are those of ``Lib/pickletools.py``, the calls those of ``torch/_utils.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ckptdoctor.formats.opcodes import get, put
from ckptdoctor.formats.tensors import contiguous
from ckptdoctor.trees import DTYPE_SIZES
from ckptdoctor.writers.pieces import Piece

# What torch has a storage class for; all else is an UntypedStorage and a dtype (``_rebuild_tensor_v3``).
STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage",
    "int8": "CharStorage", "uint8": "ByteStorage", "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage", "complex128": "ComplexDoubleStorage",
}  # fmt: skip

Entry = tuple[str, Piece, str]  # key, tensor, storage key


class Lent(NamedTuple):
    """A storage that other parts of the file have, as they name it, and where in it the tensor begins."""

    kind: str  # "torch FloatStorage"
    device: str
    numel: int
    offset: int


class _Pickle:
    def __init__(self, first: int) -> None:
        self.out = bytearray()
        self._first = first  # the first number of the memo that is free
        self._memo: dict[bytes, bytes] = {}
        self._tensors: dict[tuple[str, tuple[int, ...]], tuple[bytes, bytes]] = {}

    def once(self, opcodes: bytes) -> bytes:
        """The opcodes, and how to get the same object again from the second time on."""
        known = self._memo.get(opcodes)
        if known is not None:
            return known
        index = self._first + len(self._memo)
        self._memo[opcodes] = get(index)
        return opcodes + put(index)

    def call(self, module: str, name: str) -> bytes:
        return self.once(f"c{module}\n{name}\n".encode())

    def ordered_dict(self) -> bytes:
        return self.call("collections", "OrderedDict") + b")R"

    def tensor(self, key: str, piece: Piece, storage: str) -> None:
        kind = piece.dtype, piece.shape
        around = self._tensors.get(kind)
        if around is None:
            around = self._around(piece)
            # The first one defines what the later ones refer to.
            self._tensors[kind] = self._around(piece)
        name, place = key.encode("utf-8", "surrogatepass"), storage.encode()
        sizes = len(name).to_bytes(4, "little"), len(place).to_bytes(4, "little")
        self.out += b"X%b%b%bX%b%b%b" % (sizes[0], name, around[0], sizes[1], place, around[1])

    def lent(self, piece: Piece, storage: str, lent: Lent) -> None:
        """A tensor in a storage that is in the file anyway."""
        dtype, shape = piece.dtype, piece.shape
        typed = lent.kind.endswith(STORAGES.get(dtype, "?"))
        head = self.call("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        head += b"((" + self.once(_text("storage")) + self.call(*lent.kind.split(" ")) + _text(storage)
        head += self.once(_text(lent.device)) + _int(lent.numel) + b"tQ" + _int(lent.offset)
        head += _ints(shape) + _ints(contiguous(shape)) + b"\x89" + self.ordered_dict()
        self.out += head + (b"" if typed else self.call("torch", dtype)) + b"tR"

    def _around(self, piece: Piece) -> tuple[bytes, bytes]:
        """What comes before and behind the storage's name."""
        dtype, shape = piece.dtype, piece.shape
        typed = STORAGES.get(dtype)
        size = piece.nbytes // DTYPE_SIZES[dtype] if typed else piece.nbytes
        head = self.call("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        head += b"((" + self.once(_text("storage"))
        head += self.call("torch", typed) if typed else self.call("torch.storage", "UntypedStorage")
        tail = self.once(_text("cpu")) + _int(size) + b"tQK\x00"
        tail += _ints(shape) + _ints(contiguous(shape)) + b"\x89" + self.ordered_dict()
        return head, tail + (b"" if typed else self.call("torch", dtype)) + b"tR"


def state_dict_pickle(entries: Iterable[Entry], versions: Mapping[str, Mapping[str, int]]) -> bytes:
    """An OrderedDict of tensors; ``versions`` become its ``_metadata``."""
    return b"\x80\x02" + state_dict_opcodes(entries, versions) + b"."


def state_dict_opcodes(
    entries: Iterable[Entry],
    versions: Mapping[str, Mapping[str, int]],
    *,
    first: int = 0,
    lent: Mapping[str, Lent] | None = None,
) -> bytes:
    """The same inside of another pickle, whose memo is free from ``first`` on; ``lent`` by key."""
    pickle, lent = _Pickle(first), lent or {}
    pickle.out += pickle.ordered_dict() + b"("
    for key, piece, storage in entries:
        if lent and key in lent:
            pickle.out += _text(key)
            pickle.lent(piece, storage, lent[key])
        else:
            pickle.tensor(key, piece, storage)
    pickle.out += b"u"
    if versions:
        pickle.out += b"}" + _text("_metadata") + pickle.ordered_dict() + b"("
        for path, facts in versions.items():
            pickle.out += _text(path) + b"}("
            for name, value in facts.items():
                pickle.out += _text(name) + _int(value)
            pickle.out += b"u"
        pickle.out += b"usb"
    return bytes(pickle.out)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def _int(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return b"K%c" % value
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a%c" % len(data) + data


def _ints(values: tuple[int, ...]) -> bytes:
    if len(values) < 4:
        return b"".join(map(_int, values)) + (b")", b"\x85", b"\x86", b"\x87")[len(values)]
    return b"(" + b"".join(map(_int, values)) + b"t"
