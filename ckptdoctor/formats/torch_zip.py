"""The zip format of torch >= 1.6 and TorchScript archives: ``<root>/data.pkl`` and ``<root>/data/<key>``."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from operator import gt

from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats.arrays import OF_ARRAYS, place_arrays
from ckptdoctor.formats.assemble import assemble
from ckptdoctor.formats.base import Archive, StorageRef
from ckptdoctor.formats.harvest import Slots
from ckptdoctor.formats.inert import StorageRecord
from ckptdoctor.formats.lazy import LazyStorages
from ckptdoctor.formats.sniff import foreign
from ckptdoctor.formats.source import FileSource, Window, corrupt, window_of_bytes
from ckptdoctor.formats.unpickle import Names, Storages, unpickle
from ckptdoctor.formats.words import listing, show
from ckptdoctor.formats.zip_directory import DEFLATED, STORED, Directory
from ckptdoctor.formats.zip_members import Member

SMALL = 1 << 16
LARGEST_PICKLE = 1 << 32
READ_AT_ONCE = 1 << 22  # bytes of a pickle that are read once and kept until it is unpickled
LARGEST_CODE = 1 << 24


def open_zip(source: FileSource) -> Archive:
    """Read a zip checkpoint; raises UnknownFormatError for a zip of another kind."""
    directory = Directory(source)
    root = zip_root(source.path, directory)
    scripted = root + "constants.pkl" in directory.members or directory.members.has_under(root + "code/")
    byteorder = _small(directory, root + "byteorder") or "little"
    if byteorder not in ("little", "big"):
        raise corrupt(source.path, f"its byte order is {show(byteorder, 20)!r}, neither little nor big")
    names = Names()
    records = Storages(names)
    window = _window(source, directory, directory.members[root + "data.pkl"])
    tree = unpickle(window, names, records, path=source.path, what=f"{show(root)}data.pkl")
    storages = _storages(source, directory, root, records, byteorder)
    arrays = {} if storages else place_arrays(tree, source.path)
    return assemble(
        tree,
        names,
        storages or arrays,
        path=source.path,
        format="torchscript" if scripted else "pickle" if arrays else "torch-zip",
        description="TorchScript archive" if scripted else "torch zip" + OF_ARRAYS * bool(arrays),
        size=source.size,
        hints=_hints(directory, root, byteorder),
        slots=_script_slots(directory, root) if scripted else None,
    )


def zip_root(path: str, directory: Directory) -> str:
    """The folder (with its slash) that all members are in; any name, also none."""
    names = directory.members
    found = [
        n[: -len("data.pkl")] for n in names.ending("data.pkl") if n == "data.pkl" or n.endswith("/data.pkl")
    ]
    depth = min((r.count("/") for r in found), default=0)
    roots = [r for r in found if r.count("/") == depth]
    if len(roots) == 1:
        return roots[0]
    if roots:
        raise corrupt(
            path, f"it holds {len(roots)} checkpoints: {listing(roots)}", "unpack it and choose one"
        )
    raise _other_zip(path, names)


def _other_zip(path: str, names: Mapping[str, Member]) -> Exception:
    """What a zip without data.pkl is."""
    if any(n.endswith(".data/extern_modules") for n in names):
        return foreign(
            path,
            "a torch.package archive (code and pickles)",
            f"load it with torch.package.PackageImporter({show(path)!r}) where you trust it, "
            "and torch.save the state_dict() of the model in it",
        )
    if any(
        n.endswith(("serialized_exported_program.json", "archive_format", "/model.json", "models/model.json"))
        for n in names
    ):
        return foreign(
            path,
            "a torch.export program (.pt2) or a TorchScript archive of before torch 1.4",
            "load it with torch.export.load or torch.jit.load and torch.save its state_dict()",
        )
    if names and all(n.endswith(".npy") for n in names):
        return foreign(path, "a numpy archive (.npz)", "torch.save a dict of torch.from_numpy of its arrays")
    if any(n in ("config.json", "metadata.json") for n in names) and "model.weights.h5" in names:
        return foreign(path, "a Keras model (.keras)", "convert it with Keras")
    inside = [
        n for n in names if n.endswith((".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pkl", ".tar"))
    ]
    if inside:
        return foreign(path, f"a zip file around {listing(inside)}", f"unpack it first: unzip {show(path)}")
    if any("/data/" in n or n.startswith("data/") for n in names) and any(
        n.endswith("version") for n in names
    ):
        return corrupt(path, "a torch zip without its data.pkl (not saved to the end?)")
    return foreign(
        path, f"a zip file without a data.pkl in it ({listing(list(names)) or 'empty'})", "unpack it first"
    )


def _small(directory: Directory, name: str) -> str:
    """The text of a tiny member such as ``byteorder``; "" if it is not there."""
    member = directory.members.get(name)
    return directory.read(member, SMALL).decode("utf-8", "replace").strip() if member else ""


def _window(source: FileSource, directory: Directory, member: Member) -> Window:
    """data.pkl as a file for the unpickler, without a copy where it is large and stored as it is."""
    directory.check_readable(member)
    if member.method == STORED and member.size > READ_AT_ONCE:
        start = directory.checked_offset(member)
        return Window(source.some, start, start + member.size)
    return window_of_bytes(directory.read(member, LARGEST_PICKLE))


def _storages(
    source: FileSource, directory: Directory, root: str, records: Storages, byteorder: str
) -> Mapping[str, StorageRef]:
    members, folder = directory.members, root + "data/"
    crcs = any(crc for n, crc in zip(members, members.crc, strict=True) if crc and n.startswith(folder))
    plain = _plain_storages(source, directory, folder, records, byteorder, crcs)
    if plain is not None:
        return plain
    return {
        key: _storage(source, directory, root, record, byteorder, crcs)
        for key, record in records.everything().items()
    }


def _plain_storages(
    source: FileSource, directory: Directory, folder: str, records: Storages, byteorder: str, crcs: bool
) -> LazyStorages | None:
    """All storages at once, checked as `_storage` does; None where one is missing or not plainly stored."""
    members = directory.members
    keys, tags, kinds, due = records.columns()
    numbers = members.numbers(folder, keys)
    if numbers is None:
        return None
    packed, sizes = members.pick(members.packed, numbers), members.pick(members.size, numbers)
    stored = members.pick(members.method, numbers) == array("Q", [STORED]) * len(keys)
    if not stored or packed != sizes or any(map(gt, due, sizes)):
        return None
    if any(flags & 1 for flags in set(members.pick(members.flags, numbers))):
        return None
    offsets = directory.data_offsets(numbers)
    sums = members.pick(members.crc, numbers) if crcs else None
    return LazyStorages(keys, source.path, folder, (offsets, sizes, sums), tags, kinds, byteorder)


def _storage(
    source: FileSource, directory: Directory, root: str, record: StorageRecord, byteorder: str, crcs: bool
) -> StorageRef:
    key, dtype, device = record.key, record.dtype, record.device
    name = f"{root}data/{key}"
    member = directory.members.get(name)
    if member is None:
        if device == "meta" or not record.nbytes:
            return StorageRef(source.path, 0, 0, dtype, device, member=name)
        raise _no_member(source.path, name)
    directory.check_readable(member)
    if member.size < record.nbytes:
        raise corrupt(
            source.path,
            f"storage {show(name)!r} should have {record.nbytes} bytes, its member has {member.size}",
        )
    packed = member.method == DEFLATED
    return StorageRef(
        source.path,
        directory.data_offset(member),
        member.size,
        dtype,
        device,
        "deflate" if packed else "",
        member.crc if crcs else None,
        member.packed if packed else 0,
        byteorder,
        name,
    )


def _no_member(path: str, name: str) -> CorruptCheckpointError:
    return corrupt(path, f"storage {show(name)!r} is named in data.pkl but is not in the file")


def _hints(directory: Directory, root: str, byteorder: str) -> dict[str, str]:
    """What the members tell about the torch that wrote them."""
    hints = {"byteorder": byteorder, "root": show(root.rstrip("/"), 80)}
    version = _small(directory, root + "version") or _small(directory, root + ".data/version")
    if version:
        hints["zip_version"] = show(version, 10)
    has = directory.members.__contains__
    if has(root + ".format_version"):
        hints["torch"] = "2.7 or newer"
    elif has(root + "byteorder") or has(root + ".data/serialization_id"):
        hints["torch"] = "2.1 or newer"
    elif version:
        hints["torch"] = "1.4 to 2.0"
    return hints


_CLASS = r"(?m)^class (\w+)\(Module\):\n((?:  .*\n|\n)*)"
_SLOT = r"(?m)^  __(parameters|buffers)__ = \[(.*)\]$"
_NAME = r'"([^"\\]*)"'


def _script_slots(directory: Directory, root: str) -> Slots:
    """Which attributes of each scripted class are parameters and buffers, as its code declares."""
    slots: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    left = LARGEST_CODE
    for name, member in directory.members.items():
        if not name.startswith(root + "code/") or not name.endswith(".py"):
            continue
        left -= member.size
        if left < 0:
            break
        text = directory.read(member, LARGEST_CODE).decode("utf-8", "replace")
        module = name[len(root) + len("code/") : -len(".py")].replace("/", ".")
        for found in re.finditer(_CLASS, text):
            lists = {kind: tuple(re.findall(_NAME, body)) for kind, body in re.findall(_SLOT, found[2])}
            slots[f"{module}.{found[1]}"] = (lists.get("parameters", ()), lists.get("buffers", ()))
    return slots
