"""What is around a state dict in a torch file, kept as opcodes, so that it can be written again as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptdoctor.errors import ApplyError
from ckptdoctor.formats.base import Archive, StateDict, StorageRef
from ckptdoctor.formats.inert import Inert
from ckptdoctor.formats.opcodes import Node, OpcodeTree, constant, global_name, meant
from ckptdoctor.formats.source import FileSource, Window, window_of_bytes
from ckptdoctor.formats.torch_zip import LARGEST_PICKLE, zip_root
from ckptdoctor.formats.unpickle import Names, Storages, unpickle
from ckptdoctor.formats.walk import Walk
from ckptdoctor.formats.words import listing, show
from ckptdoctor.formats.zip_directory import Directory
from ckptdoctor.trees import DTYPE_SIZES

# What torch.save puts into a zip beside the pickle and the storages.
OWN = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")


class Kept(NamedTuple):
    """A storage that is used outside of the state dict, as its persistent id names it."""

    key: str
    kind: str  # "torch FloatStorage", the two words of its class
    device: str
    numel: int
    ref: StorageRef


@dataclass(frozen=True)
class Envelope:
    """A checkpoint's pickle and the place of one state dict in it.

    ``kept`` are the storages of everything else, by key; ``optimizers`` are the places of optimizer states
    that hold moments; ``root`` and ``node`` are the whole and the state dict as inert objects.
    """

    archive: Archive
    path: str  # of the state dict
    tree: OpcodeTree
    place: Node
    kept: dict[str, Kept]
    optimizers: tuple[str, ...]
    root: Any
    node: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the storages that are kept."""
        return sum(k.ref.nbytes for k in self.kept.values())

    def written(self, opcodes: Callable[[], bytes], seen: Callable[[str], None]) -> bytes:
        """The pickle with other opcodes for the state dict; ``seen`` is told each kept storage in it."""
        return self.tree.written({self.place: opcodes}, lambda node: seen(_storage_key(node)))


def rest_of(archive: Archive, state_dict: StateDict) -> tuple[str, ...]:
    """The places of what is in the file beside a state dict: other state dicts, and everything else."""
    others = [s.path for s in archive.state_dicts if s.path != state_dict.path]
    return (*archive.rest, *others)


def open_envelope(archive: Archive, state_dict: StateDict) -> Envelope | None:
    """The envelope around a state dict; None where there is none. Raises :class:`ApplyError` with the reason
    where it cannot be kept, or ReadError.
    """
    if not state_dict.path:
        entries = rest_of(archive, state_dict)
        if entries:
            raise _cannot(archive, f"{listing(list(entries))} is among the tensors of the state dict itself")
        return None
    with FileSource(archive.path) as source:
        if archive.stamps.get(archive.path, source.stamp) != source.stamp:
            raise ApplyError(f"{show(archive.path)}: was written since it was inspected; try again")
        return _opened(archive, state_dict, source)


def _cannot(archive: Archive, why: str) -> ApplyError:
    return ApplyError(
        f"{show(archive.path)}: its envelope cannot be kept, because {why}; "
        "without --keep-envelope the weights alone are written"
    )


def _opened(archive: Archive, state_dict: StateDict, source: FileSource) -> Envelope:
    memo: dict[int, Any] = {}
    data, root = _pickle(archive, source, memo)
    walk = Walk(root, archive.path)
    place = next((p for p in walk.found if p.path == state_dict.path), None)
    if place is None or place.kind != "mapping":
        what = {"module": "a pickled module", "list": "a list"}.get(place.kind if place else "", "no mapping")
        raise _cannot(archive, f"`{show(state_dict.path)}` is {what}, which has no place for other names")
    tree = OpcodeTree(data, archive.path)
    index = next((i for i, value in memo.items() if value is place.node), None)
    if index is None or index not in tree.memo:
        raise _cannot(archive, "its pickle does not say where the state dict begins")
    _plain_ids(archive, tree)
    kept = _kept(archive, tree, tree.memo[index])
    optimizers = tuple(
        p.path or "the file" for p in walk.places.values() if p.kind == "optimizer" and _has_state(p.node)
    )
    return Envelope(archive, state_dict.path, tree, tree.memo[index], kept, optimizers, root, place.node)


def _pickle(archive: Archive, source: FileSource, memo: dict[int, Any]) -> tuple[bytes, Any]:
    """The bytes of the pickle that holds everything, and its object."""
    names, path = Names(), archive.path
    if archive.format == "torch-zip":
        directory = Directory(source)
        root = zip_root(path, directory)
        foreign = [n for n in directory.members if not _is_own(n.removeprefix(root))]
        if foreign or archive.hints.get("byteorder") == "big":
            why = f"{listing(foreign)} is no part of a torch file" if foreign else "it is big-endian"
            raise _cannot(archive, why)
        data = directory.read(directory.members[root + "data.pkl"], LARGEST_PICKLE)
        window = window_of_bytes(data)
        return data, unpickle(window, names, Storages(names), path=path, what="data.pkl", memo=memo)
    if archive.format != "torch-legacy":
        raise _cannot(archive, f"it is a {archive.description}")
    window, outside = Window(source.some, 0, source.size), Storages(names)
    for what in ("the magic number", "the protocol version", "the system information"):
        unpickle(window, names, outside, path=path, what=what)
    start = window.position
    found = unpickle(window, names, outside, path=path, what="the pickle", memo=memo)
    return source.exactly(start, window.position - start, "the pickle"), found


def _is_own(name: str) -> bool:
    return name in OWN or name.startswith("data/")


def _has_state(node: Any) -> bool:
    attributes = node.attributes() if isinstance(node, Inert) else node
    state = attributes["state"]
    return bool(state.pairs if isinstance(state, Inert) else state)


def _plain_ids(archive: Archive, tree: OpcodeTree) -> None:
    """Persistent ids as the zip format has them: without the views, and the source code, of legacy files."""
    for node in tree.outside:
        parts = _id_parts(node)
        kind = constant(parts[0]) if parts else None
        if kind == "module" and len(parts) == 4:
            node.op, node.parts[:] = "MODULE", [parts[1], *node.parts[2:]]
        elif kind == "storage" and len(parts) == 6 and meant(parts[5]).op == "NONE":
            meant(node.parts[0]).parts.remove(parts[5])
        elif kind != "storage" or len(parts) != 5:
            raise _cannot(archive, "it holds views of storages, as torch before 0.4 saved them")


def _id_parts(node: Node) -> list[Node]:
    return meant(node.parts[0]).children()


def _storage_key(node: Node) -> str:
    return str(constant(_id_parts(node)[2]))


def _kept(archive: Archive, tree: OpcodeTree, place: Node) -> dict[str, Kept]:
    """The storages that are left when the state dict is taken out."""
    kept: dict[str, Kept] = {}

    def seen(node: Node) -> None:
        _, kind, key, device, numel = _id_parts(node)
        name = constant(key)
        if name not in kept:
            ref = archive.storages.get(name) if isinstance(name, str) else None
            if ref is None or not name.isalnum() or not isinstance(constant(device), str):
                raise _cannot(archive, f"the name of storage {show(name)!r} is not that of a torch file")
            kept[name] = Kept(name, global_name(kind), constant(device), constant(numel), ref)

    tree.written({place: lambda: b"N"}, seen)
    return kept


def fits_exactly(kept: Kept) -> bool:
    """Whether the storage has as many bytes in the file as its persistent id says."""
    return kept.ref.nbytes == kept.numel * DTYPE_SIZES.get(kept.ref.dtype, 0)
