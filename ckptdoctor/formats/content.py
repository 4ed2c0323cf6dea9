"""Everything in a pickled checkpoint as plain values: what is in no state dict as well. Nothing is executed.

Tensors become :class:`Leaf` (a spec, whose values :func:`leaf_reader` reads), objects of classes that the
file names become :class:`Opaque`, all else is what it is: dicts, lists, numbers, texts, bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ckptdoctor.formats.arrays import MAKERS, array_record, is_array
from ckptdoctor.formats.base import Archive, Recipe, StateDict, StorageRef
from ckptdoctor.formats.inert import DtypeName, Inert, StorageRecord, TensorRecord, TensorRows
from ckptdoctor.formats.source import corrupt
from ckptdoctor.formats.summaries import words
from ckptdoctor.formats.views import Views
from ckptdoctor.formats.walk import join
from ckptdoctor.trees import DTYPE_SIZES, ParamTree, TensorSpec

if TYPE_CHECKING:
    from ckptdoctor.formats.tensors import TensorReader

DEEPEST = 200  # of plain values; a training status is a few levels deep
MOST = 5_000_000  # values of one file
ATOMS = (bool, int, float, complex, str, bytes, type(None))
NUMBERS = {"float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i", "int16": "h"}
SCALARS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b",
    "u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor somewhere in the file; ``path`` says where, ``numpy`` that it was an array."""

    path: str
    spec: TensorSpec
    recipe: Recipe | None = None
    numpy: bool = False


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object of a class that the file names, which is not made: its class, and what it was given."""

    what: str  # "argparse.Namespace"
    attributes: Mapping[Any, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    items: tuple[Any, ...] = ()


def leaves(specs: Mapping[str, TensorSpec]) -> dict[str, Leaf]:
    """The values of a file that is nothing but these tensors."""
    return {key: Leaf(join("", key), spec) for key, spec in specs.items()}


def plain(root: Any, path: str, nbytes: Mapping[str, int], storages: dict[str, StorageRef]) -> Any:
    """A root object in plain values; ``storages`` gets the bytes that the pickle itself holds.

    Raises CorruptCheckpointError naming a tensor that is wrong.
    """
    return _Plain(Views(path, nbytes), storages).of(root, "", 0)


def leaf_reader(archive: Archive, leaves: Mapping[str, Leaf], *, check_crc: bool = True) -> TensorReader:
    """A reader of the tensors of ``leaves`` by their names in it."""
    from ckptdoctor.formats.tensors import TensorReader

    more = archive.content.storages if archive.content is not None else {}
    whole = replace(archive, storages={**archive.storages, **more})
    recipes = {name: leaf.recipe for name, leaf in leaves.items() if leaf.recipe is not None}
    tree = ParamTree({name: leaf.spec for name, leaf in leaves.items()})
    return TensorReader(whole, StateDict("", tree, recipes=recipes), check_crc=check_crc)


def scalar(archive: Archive, leaf: Leaf) -> float | int | None:
    """The value of a tensor of one element, read without torch; None where it is none, or of an odd dtype."""
    from ckptdoctor.formats.blobs import Files, pieces

    spec = leaf.spec
    more = archive.content.storages if archive.content is not None else {}
    ref = archive.storages.get(spec.storage) or more.get(spec.storage)
    code, size = NUMBERS.get(spec.dtype, ""), DTYPE_SIZES.get(spec.dtype, 0)
    if spec.numel != 1 or leaf.recipe is not None or ref is None or not code or ref.nbytes > 1 << 16:
        return None
    files = Files()
    try:
        data = b"".join(pieces(files, ref))
    finally:
        files.close()
    order = ">" if ref.byteorder == "big" else "<"
    found: float | int = struct.unpack_from(order + code, data, spec.offset * size)[0]
    return found


def leaves_of(value: Any) -> Iterator[Leaf]:
    """All tensors in a plain value."""
    stack = [value]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if isinstance(node, Leaf):
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.extend(reversed(list(inside(node))))


def inside(node: Any) -> Iterator[Any]:
    """What is directly inside a plain value."""
    if isinstance(node, Mapping):
        yield from node.values()
    elif isinstance(node, list | tuple | set | frozenset):
        yield from node
    elif isinstance(node, Opaque):
        yield from (*node.attributes.values(), *node.args, *node.items)


class _Plain:
    """One conversion; values that the file shares are shared."""

    def __init__(self, views: Views, storages: dict[str, StorageRef]) -> None:
        self.views = views
        self.storages = storages
        self.made: dict[int, Any] = {}
        self.kept: list[Any] = []  # so that ids stay unique
        self.count = 0

    def of(self, value: Any, path: str, depth: int) -> Any:
        if type(value) in ATOMS:
            return value
        if id(value) in self.made:
            return self.made[id(value)]
        self.count += 1
        if depth > DEEPEST or self.count > MOST:
            raise corrupt(self.views.path, f"{path[:80]!r} is nested too deeply or holds too many values")
        self.made[id(value)] = Opaque("a value that contains itself")
        self.kept.append(value)
        result = self.made[id(value)] = self._new(value, path, depth + 1)
        return result

    def _new(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, TensorRows):
            value = value.records()
        if isinstance(value, TensorRecord):
            return Leaf(path, self.views.spec(value, path), self.views.recipe(value, path))
        if isinstance(value, dict):
            return {_key(k): self.of(v, join(path, _key(k)), depth) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            items = [self.of(v, f"{path}[{i}]", depth) for i, v in enumerate(value)]
            return items if isinstance(value, list) else _frozen(type(value), items)
        if isinstance(value, bytearray):
            return bytes(value)
        if isinstance(value, Inert):
            return self._object(value, path, depth)
        if isinstance(value, DtypeName):
            return Opaque("torch.dtype", args=(value.name,))
        return Opaque("torch.storage" if isinstance(value, StorageRecord) else words(value))

    def _object(self, value: Inert, path: str, depth: int) -> Any:
        if is_array(value) and (found := array_record(value, f"numpy:{path}")) is not None:
            return self._array(*found, path)
        if value.module in MAKERS and value.name == "scalar" and (number := _scalar(value)) is not None:
            return number[0]
        if value.what in ("_codecs.encode",) and value.args and isinstance(value.args[0], str):
            return value.args[0].encode("latin1", "replace")
        attributes = value.attributes()
        state = (value.state,) if value.state is not None and not attributes else ()
        pairs = {_key(k): v for k, v in value.pairs}
        return Opaque(
            value.what,
            {_key(k): self.of(v, join(path, _key(k)), depth) for k, v in {**attributes, **pairs}.items()},
            tuple(self.of(v, f"{path}({i})", depth) for i, v in enumerate((*value.args, *state))),
            tuple(self.of(v, f"{path}[{i}]", depth) for i, v in enumerate(value.items)),
        )

    def _array(self, record: TensorRecord, data: bytes, byteorder: str, path: str) -> Leaf:
        storage = record.storage
        file = self.views.path
        self.storages[storage.key] = StorageRef(
            file, 0, len(data), storage.dtype, "cpu", byteorder=byteorder, member=path, inline=data
        )
        own = Views(file, {storage.key: len(data)})
        return Leaf(path, own.spec(record, path), numpy=True)


def _frozen(kind: type[Any], items: list[Any]) -> Any:
    try:
        return kind(items) if kind in (tuple, set, frozenset) else tuple(items)
    except TypeError:  # a set of what cannot be hashed any more
        return tuple(items)


def _key(key: Any) -> Any:
    if isinstance(key, str | int | float | bool | bytes | type(None)):
        return key
    if isinstance(key, tuple):
        return tuple(_key(k) for k in key)
    return words(key)


def _scalar(value: Inert) -> tuple[Any] | None:
    """``numpy.core.multiarray.scalar(dtype, bytes)`` as a number, in a tuple of one; None for others."""
    if len(value.args) != 2 or not isinstance(value.args[0], Inert):
        return None
    described, raw = value.args
    if isinstance(raw, Inert) and raw.what == "_codecs.encode" and raw.args and isinstance(raw.args[0], str):
        raw = raw.args[0].encode("latin1", "replace")
    name = described.args[0] if described.what == "numpy.dtype" and described.args else None
    code = SCALARS.get(name) if isinstance(name, str) else None
    big = isinstance(described.state, tuple) and len(described.state) > 1 and described.state[1] == ">"
    order = ">" if big else "<"
    if code is None or not isinstance(raw, bytes) or len(raw) != struct.calcsize(order + code):
        return None
    return struct.unpack(order + code, raw)
