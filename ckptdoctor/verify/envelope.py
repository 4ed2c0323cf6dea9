"""Whether everything around a state dict is in the new file what it was in the old one.

Both pickles are walked side by side as inert objects: same types, values, order, sharing; storages bit for
bit. Nothing here is shared with what wrote the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.blobs import Files, pieces
from ckptdoctor.formats.envelope import Envelope, open_envelope
from ckptdoctor.formats.inert import Inert, OrderedMapping, StorageRecord, StorageType, TensorRecord
from ckptdoctor.keys import printable

if TYPE_CHECKING:
    from ckptdoctor.formats.base import StorageRef

ATOMS = (bool, int, str, bytes, bytearray, type(None), float, complex)


def envelope_problems(old: Envelope, new_path: Path, *, bits: bool) -> Iterator[str]:
    """What differs around the state dict, in words; with ``bits`` the bytes of storages as well."""
    archive = open_checkpoint(new_path)
    try:
        new = open_envelope(archive, archive[old.path])
    except (CkptDoctorError, KeyError) as error:
        yield f"the envelope cannot be read back: {error}"
        return
    assert new is not None  # its path is not the whole file
    walk = _Twins(old.node, new.node)
    where = walk.difference(old.root, new.root)
    if where is not None:
        yield f"{where} is not what it was in the envelope"
        return
    for a, b in walk.storages.items():
        if not _same_bytes(old.archive.storages[a], archive.storages[b], bits):
            yield f"storage {printable(a)} of the envelope is not what it was"


def _same_bytes(a: StorageRef, b: StorageRef, bits: bool) -> bool:
    if a.nbytes != b.nbytes or (a.crc is not None and a.crc != b.crc):
        return False
    if not bits:
        return True
    files = Files()
    try:
        return all(x == y for x, y in zip(_blocks(files, a), _blocks(files, b), strict=True))
    finally:
        files.close()


def _blocks(files: Files, ref: StorageRef) -> Iterator[bytes]:
    """The bytes of a storage in pieces of one size, however they are kept."""
    held = bytearray()
    for piece in pieces(files, ref):
        held += piece
        while len(held) >= 1 << 20:
            yield bytes(held[: 1 << 20])
            del held[: 1 << 20]
    yield bytes(held)


class _Twins:
    """Two graphs of inert objects, and which object of one is which of the other."""

    def __init__(self, old: Any, new: Any) -> None:
        self.pairs: dict[int, Any] = {id(old): new}
        self.backwards: dict[int, Any] = {id(new): old}
        self.storages: dict[str, str] = {}
        self._kept = [old, new]  # ids stay those of these objects

    def difference(self, old: Any, new: Any) -> str | None:
        """Where the graphs differ, in words; None if nowhere."""
        stack = [(old, new, "the file")]
        while stack:
            a, b, where = stack.pop()
            if isinstance(a, ATOMS):
                if type(a) is not type(b) or not _same_atom(a, b):
                    return where
            elif id(a) in self.pairs or id(b) in self.backwards:
                if self.pairs.get(id(a)) is not b:
                    return where
            elif _kind(a) is not _kind(b):
                return where
            else:
                self.pairs[id(a)], self.backwards[id(b)] = b, a
                self._kept += [a, b]
                inner = self._inside(a, b)
                if inner is None:
                    return where
                stack += [(x, y, name or where) for name, x, y in inner]
        return None

    def _inside(self, a: Any, b: Any) -> list[tuple[str, Any, Any]] | None:
        """The pairs below; None where the two differ by themselves."""
        if isinstance(a, StorageRecord):
            same = (a.dtype, a.device, a.numel) == (b.dtype, b.device, b.numel)
            return [] if same and self.storages.setdefault(a.key, b.key) == b.key else None
        if isinstance(a, dict):
            rows = _rows(list(a.items()), list(b.items()))
            if rows is not None and isinstance(a, OrderedMapping):
                rows.append(("", _state(a), _state(b)))
            return rows
        if isinstance(a, list | tuple):
            return _zipped(a, b)
        if isinstance(a, set | frozenset):
            return _zipped(sorted(a, key=repr), sorted(b, key=repr)) if _plain(a) else _sizes(a, b)
        if isinstance(a, Inert):
            kinds = [("", x, y) for x, y in ((a.args, b.args), (a.state, b.state), (a.items, b.items))]
            return [*kinds, ("", a.pairs, b.pairs)] if a.what == b.what else None
        if isinstance(a, TensorRecord | StorageType):
            return [("", getattr(a, n), getattr(b, n)) for n in type(a).__slots__]
        return self._named(a, b)

    def _named(self, a: Any, b: Any) -> list[tuple[str, Any, Any]] | None:
        """Classes and functions that the file names."""
        if _stand_in(a):
            return [] if (a.module, a.name) == (b.module, b.name) else None
        return [] if a is b or getattr(a, "name", a) == getattr(b, "name", b) else None


def _kind(value: Any) -> type[Any]:
    """Its type; every file has stand-in classes of its own."""
    return Inert if isinstance(value, Inert) else type(value)


def _stand_in(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Inert)


def _state(mapping: Any) -> Any:
    return getattr(mapping, "state", None)


def _same_atom(a: Any, b: Any) -> bool:
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return struct.pack("dd", a.real, a.imag) == struct.pack("dd", b.real, b.imag)
    return bool(a == b)


def _rows(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]]) -> list[tuple[str, Any, Any]] | None:
    if len(a) != len(b):
        return None
    rows = []
    for (key, x), (other, y) in zip(a, b, strict=True):
        rows += [("", key, other), (f"`{printable(str(key)[:80])}`", x, y)]
    return rows


def _zipped(a: Any, b: Any) -> list[tuple[str, Any, Any]] | None:
    return [("", x, y) for x, y in zip(a, b, strict=True)] if len(a) == len(b) else None


def _plain(values: Any) -> bool:
    return all(isinstance(v, ATOMS) for v in values)


def _sizes(a: Any, b: Any) -> list[tuple[str, Any, Any]] | None:
    return [] if len(a) == len(b) else None
