"""Plain pickles (``pickle.dump``): tensors and numpy arrays are read where they are, all else is named.

A tensor in a plain pickle holds its storage as bytes of a whole legacy stream
(``torch.storage._load_from_bytes``); a numpy array holds raw bytes (``numpy.ndarray.__reduce__``).
"""

from __future__ import annotations

from typing import Any

from ckptdoctor.formats.arrays import inline_ref, place_arrays
from ckptdoctor.formats.assemble import assemble
from ckptdoctor.formats.base import Archive, StorageRef
from ckptdoctor.formats.inert import StorageRecord
from ckptdoctor.formats.rebuild import Function
from ckptdoctor.formats.sniff import LEGACY_NUMBER, foreign
from ckptdoctor.formats.source import FileSource, Window, corrupt
from ckptdoctor.formats.summaries import words
from ckptdoctor.formats.torch_legacy import storage_table
from ckptdoctor.formats.unpickle import Names, Storages, unpickle
from ckptdoctor.formats.words import show

FROM_BYTES = ("torch.storage", "_load_from_bytes")
DCP = "torch.distributed.checkpoint.metadata"


def open_pickle(source: FileSource) -> Archive:
    """Read a plain pickle that holds tensors or arrays; UnknownFormatError names one that holds none."""
    return _Pickle(source).archive()


class _Pickle:
    """One file being read, with the storages found inside its byte strings."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self.names = Names()
        self.names.made[FROM_BYTES] = Function(self._from_bytes)
        self.refs: dict[str, StorageRef] = {}

    def archive(self) -> Archive:
        """The archive; format "pickle"."""
        window = Window(self.source.some, 0, self.source.size)
        root = unpickle(window, self.names, Storages(), path=self.source.path, what="the pickle")
        if not self.refs:
            self.names.made.pop(FROM_BYTES)
        if any(module == DCP for module, _ in self.names.made):
            raise foreign(
                self.source.path,
                "the index of a distributed checkpoint (DCP folder)",
                "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER checkpoint.pth",
            )
        self.refs |= place_arrays(root, self.source.path, len(self.refs))
        if not self.refs:
            raise foreign(
                self.source.path,
                f"a plain pickle without tensors ({words(root)})",
                "look for the checkpoint itself",
            )
        return assemble(
            root,
            self.names,
            self.refs,
            path=self.source.path,
            format="pickle",
            description="plain pickle (pickle.dump)",
            size=self.source.size,
            hints={},
            expected=frozenset({FROM_BYTES}),
        )

    def _from_bytes(self, data: Any) -> Any:
        """`torch.storage._load_from_bytes`: a legacy stream whose object is one storage."""
        if not isinstance(data, bytes | bytearray):
            raise ValueError("a storage that is no byte string")
        inner = _Bytes(self.source.path, bytes(data))
        window = Window(inner.some, 0, inner.size)
        records = Storages()
        parts = [unpickle(window, self.names, records, path=inner.path, what="a storage") for _ in range(5)]
        magic, _, _, storage, keys = parts
        if magic != LEGACY_NUMBER or not isinstance(storage, StorageRecord):
            raise ValueError("a storage that is none")
        for ref_key, ref in storage_table(inner, records, keys, window.position).items():
            content = inner.data[ref.offset : ref.offset + ref.nbytes]
            if ref_key == storage.key:
                storage.key = f"#{len(self.refs)}"
                self.refs[storage.key] = inline_ref(self.source.path, storage, content)
        return storage


class _Bytes(FileSource):
    """Bytes in memory with the interface of a file."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.data = data
        self.size = len(data)

    def some(self, offset: int, count: int) -> bytes:
        """At most `count` bytes."""
        if offset < 0 or count < 0:
            raise corrupt(self.path, f"a storage in it is damaged ({show(offset)})")
        return self.data[offset : offset + count]
