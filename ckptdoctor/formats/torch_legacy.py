"""The stream of torch < 1.6: five pickles, then for each storage its element count and its raw bytes.

Order: magic number, protocol version, system information, the object, the list of storage keys.
The raw bytes follow in the order of that list (``torch.serialization._legacy_save``), little-endian.
"""

from __future__ import annotations

from typing import Any

from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats.arrays import OF_ARRAYS, place_arrays
from ckptdoctor.formats.assemble import assemble
from ckptdoctor.formats.base import Archive, StorageRef
from ckptdoctor.formats.sniff import LEGACY_NUMBER
from ckptdoctor.formats.source import FileSource, Window, corrupt
from ckptdoctor.formats.unpickle import Names, Storages, unpickle
from ckptdoctor.formats.words import show
from ckptdoctor.trees import DTYPE_SIZES

PROTOCOL_VERSION = 1001


def open_legacy(source: FileSource) -> Archive:
    """Read a legacy stream; raises CorruptCheckpointError when it is truncated or contradicts itself."""
    window = Window(source.some, 0, source.size)
    names = Names()
    records = Storages(names)

    def load(what: str) -> Any:
        return unpickle(window, names, records, path=source.path, what=what)

    if load("the magic number") != LEGACY_NUMBER:
        raise corrupt(source.path, "its magic number is wrong")
    if load("the protocol version") != PROTOCOL_VERSION:
        raise corrupt(source.path, "its protocol version is unknown")
    info = load("the system information")
    root = load("the pickle")
    keys = load("the list of storages")
    storages = storage_table(source, records, keys, window.position)
    hints = {"torch": "before 1.6, or saved with _use_new_zipfile_serialization=False", "byteorder": "little"}
    if isinstance(info, dict) and info.get("little_endian") is False:
        hints["saved_on"] = "a big-endian machine"
    arrays = {} if storages else place_arrays(root, source.path)
    return assemble(
        root,
        names,
        storages or arrays,
        path=source.path,
        format="pickle" if arrays else "torch-legacy",
        description="legacy torch (before 1.6)" + OF_ARRAYS * bool(arrays),
        size=source.size,
        hints=hints,
    )


def storage_table(source: FileSource, records: Storages, keys: Any, position: int) -> dict[str, StorageRef]:
    """Where each storage's bytes are; their counts must be those that the pickle gave."""
    if not isinstance(keys, list):
        raise corrupt(source.path, "its list of storages is none")
    names = [
        k.decode("latin1") if isinstance(k, bytes) else str(k)
        for k in keys
        if isinstance(k, str | int | bytes)
    ]
    if len(names) != len(keys) or len(set(names)) != len(names):
        raise corrupt(source.path, "its list of storages is malformed or names one twice")
    refs: dict[str, StorageRef] = {}
    everything = records.everything()
    for key in names:
        record = everything.get(key)
        if record is None:
            raise corrupt(source.path, f"storage {show(key)!r} is in the file but nothing refers to it")
        raw = source.some(position, 8)
        count = int.from_bytes(raw, "little", signed=True)
        nbytes = count * DTYPE_SIZES[record.dtype]
        position += 8
        if len(raw) < 8 or position + nbytes > source.size:
            raise _cut_short(source, key, position + max(nbytes, 0))
        if nbytes < record.nbytes:
            raise corrupt(
                source.path, f"storage {show(key)!r} has {count} elements, the pickle says {record.numel}"
            )
        refs[key] = StorageRef(source.path, position, nbytes, record.dtype, record.device)
        position += nbytes
    for key, record in everything.items():
        if key not in refs:
            if record.nbytes:
                raise corrupt(
                    source.path, f"storage {show(key)!r} is named in the pickle but is not in the file"
                )
            refs[key] = StorageRef(source.path, position, 0, record.dtype, record.device)
    return refs


def _cut_short(source: FileSource, key: str, end: int) -> CorruptCheckpointError:
    return corrupt(
        source.path,
        f"storage {show(key)!r} should end at byte {end}, the file has {source.size} (truncated)",
    )
