"""Plain pickles (``pickle.dump``): tensors and numpy arrays are read where they are, all else is named.

A tensor in a plain pickle holds its storage as bytes of a whole legacy stream
(``torch.storage._load_from_bytes``); a numpy array holds raw bytes (``numpy.ndarray.__reduce__``).
"""

from __future__ import annotations

from typing import Any

from ckptdoctor.formats.arrays import array_record, is_array
from ckptdoctor.formats.assemble import assemble
from ckptdoctor.formats.base import Archive, StorageRef
from ckptdoctor.formats.inert import Inert, StorageRecord, TensorRecord
from ckptdoctor.formats.rebuild import Function
from ckptdoctor.formats.sniff import LEGACY_NUMBER, foreign
from ckptdoctor.formats.source import FileSource, Window, corrupt
from ckptdoctor.formats.summaries import words
from ckptdoctor.formats.torch_legacy import storage_table
from ckptdoctor.formats.unpickle import Names, Storages, unpickle
from ckptdoctor.formats.walk import children, is_container
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
        root = self._with_arrays(root)
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
                self._keep(storage, content)
        return storage

    def _keep(self, storage: StorageRecord, content: bytes, byteorder: str = "little") -> None:
        self.refs[storage.key] = StorageRef(
            self.source.path,
            0,
            len(content),
            storage.dtype,
            storage.device,
            byteorder=byteorder,
            member=storage.key,
            inline=content,
        )

    def _with_arrays(self, root: Any) -> Any:
        """Put a tensor in the place of every numeric array that a dict or list holds."""
        seen: set[int] = set()
        made: dict[int, TensorRecord] = {}
        stack = [root]
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            pairs = (
                node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            )
            for key, value in list(pairs):
                if isinstance(value, Inert) and is_array(value):
                    record = made.get(id(value)) or self._array(value)
                    if record is not None:
                        made[id(value)] = node[key] = record
            stack.extend(value for _, value in children(node, "", is_container))
        return root

    def _array(self, value: Inert) -> TensorRecord | None:
        found = array_record(value, f"#{len(self.refs)}")
        if found is None:
            return None
        record, content, byteorder = found
        self._keep(record.storage, content, byteorder)
        return record


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
