"""The tar files of torch 0.1 (2016-17): members ``storages``, ``tensors`` and ``pickle``.

As read by ``torch.serialization._legacy_load.legacy_load``. Tar headers: POSIX.1-1988 (ustar).
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats.assemble import assemble
from ckptdoctor.formats.base import Archive, StorageRef
from ckptdoctor.formats.inert import StorageRecord, StorageType, StorageView, TensorRecord
from ckptdoctor.formats.sniff import foreign
from ckptdoctor.formats.source import FileSource, Window, corrupt
from ckptdoctor.formats.unpickle import Names, text, unpickle
from ckptdoctor.formats.views import element_size
from ckptdoctor.formats.words import listing, show

BLOCK = 512
MOST_MEMBERS = 10_000
MOST_DIMENSIONS = 64


def open_tar(source: FileSource) -> Archive:
    """Read a tar checkpoint of torch 0.1; raises UnknownFormatError for any other tar."""
    members = _members(source)
    if not {"storages", "tensors", "pickle"} <= members.keys():
        raise foreign(
            source.path,
            f"a tar archive ({listing(list(members)) or 'empty'})",
            f"unpack it first: tar xf {show(source.path)}",
        )
    return _Tar(source, members).archive()


def _members(source: FileSource) -> dict[str, tuple[int, int]]:
    """Member -> first and last byte. Directories and links are skipped."""
    members: dict[str, tuple[int, int]] = {}
    at = 0
    while at + BLOCK <= source.size and len(members) < MOST_MEMBERS:
        header = source.exactly(at, BLOCK, "a tar header")
        if not header.strip(b"\0"):
            break
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            raise corrupt(source.path, "a tar header is damaged") from None
        name = header[:100].split(b"\0")[0].decode("utf-8", "replace").removeprefix("./")
        if at + BLOCK + size > source.size or size < 0:
            raise corrupt(source.path, f"tar member {show(name)!r} ends outside the file (truncated)")
        if header[156:157] in (b"0", b"\0"):
            if name in members:
                raise corrupt(source.path, f"tar member {show(name)!r} is there twice")
            members[name] = at + BLOCK, at + BLOCK + size
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return members


class _Tar:
    """One file being read: objects by the number that persistent ids use."""

    def __init__(self, source: FileSource, members: dict[str, tuple[int, int]]) -> None:
        self.source = source
        self.members = members
        self.names = Names()
        self.objects: dict[str, StorageRecord | TensorRecord] = {}
        self.refs: dict[str, StorageRef] = {}

    def _bad(self, what: str) -> CorruptCheckpointError:
        return corrupt(self.source.path, what)

    def resolve(self, pid: Any) -> Any:
        """A persistent id: ``(class, source file, source)``, or the number of a tensor or storage."""
        if isinstance(pid, tuple) and pid:
            return pid[0]
        made = self.objects.get(text(pid)) if isinstance(pid, str | int) else None
        if made is None:
            raise pickle.UnpicklingError("it refers to an object that is not in the file")
        return made

    def _window(self, name: str) -> Window:
        return Window(self.source.some, *self.members[name])

    def _load(self, window: Window, what: str) -> Any:
        return unpickle(window, self.names, self, path=self.source.path, what=what)

    def archive(self) -> Archive:
        """Storages first, then tensors over them, then the object that holds those."""
        self._storages(self._window("storages"))
        self._tensors(self._window("tensors"))
        root = self._load(self._window("pickle"), "the pickle")
        return assemble(
            root,
            self.names,
            self.refs,
            path=self.source.path,
            format="torch-tar",
            description="torch tar (before 0.1.10)",
            size=self.source.size,
            hints={"torch": "0.1", "byteorder": "little"},
        )

    def _count(self, window: Window, what: str) -> int:
        count = self._load(window, f"the number of {what}")
        if type(count) is not int or not 0 <= count <= self.source.size:
            raise self._bad(f"its number of {what} is wrong")
        return count

    def _triple(self, window: Window, what: str) -> tuple[Any, Any, Any]:
        entry = self._load(window, what)
        if not isinstance(entry, tuple) or len(entry) != 3:
            raise self._bad(f"{what} is malformed")
        return entry

    def _storages(self, window: Window) -> None:
        for _ in range(self._count(window, "storages")):
            number, device, kind = self._triple(window, "a storage's entry")
            key = text(number)
            if not isinstance(kind, StorageType):
                raise self._bad(f"storage {show(key)!r} is of an unknown type")
            (count,) = struct.unpack("<q", self._bytes(window, 8))
            if not 0 <= count <= self.source.size:
                raise self._bad(
                    f"storage {show(key)!r} of {count} elements ends outside the file (truncated)"
                )
            record = StorageRecord(key, kind.dtype, text(device), count)
            if window.position + record.nbytes > window.end:
                raise self._bad(
                    f"storage {show(key)!r} of {count} elements ends outside the file (truncated)"
                )
            self.objects[key] = record
            self.refs[key] = StorageRef(
                self.source.path, window.position, record.nbytes, record.dtype, record.device
            )
            window.position += record.nbytes
        self._views(self._load(window, "the list of views"))

    def _views(self, views: Any) -> None:
        for view in views if isinstance(views, list) else ():
            if not isinstance(view, tuple) or len(view) != 4:
                raise self._bad("its list of views is malformed")
            number, root_key, offset, numel = view
            key = text(number)
            root = self.objects.get(text(root_key))
            if not isinstance(root, StorageRecord) or type(offset) is not int or type(numel) is not int:
                raise self._bad("its list of views is malformed")
            if offset < 0 or numel < 0 or (offset + numel) * element_size(root.dtype) > root.nbytes:
                raise self._bad(f"view {show(key)!r} ends outside its storage")
            whole = root if root.root is None else root.root
            self.objects[key] = StorageView(key, whole, root.root_offset + offset, numel)

    def _tensors(self, window: Window) -> None:
        for _ in range(self._count(window, "tensors")):
            number, storage_key, _ = self._triple(window, "a tensor's entry")
            key = text(number)
            storage = self.objects.get(text(storage_key))
            (dimensions,) = struct.unpack("<i4x", self._bytes(window, 8))
            if not 0 <= dimensions <= MOST_DIMENSIONS:
                raise self._bad(f"tensor {show(key)!r} has {dimensions} dimensions")
            numbers = struct.unpack(f"<{2 * dimensions + 1}q", self._bytes(window, 16 * dimensions + 8))
            size, stride = numbers[:dimensions], numbers[dimensions:-1]
            self.objects[key] = TensorRecord(storage, numbers[-1], size, stride)

    def _bytes(self, window: Window, count: int) -> bytes:
        data = window.read(count)
        if len(data) != count:
            raise self._bad("it ends in the middle of a tensor (truncated)")
        return data
