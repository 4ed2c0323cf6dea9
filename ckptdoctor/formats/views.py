"""Tensor records become specs here, once their view is proved to lie inside its storage."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import Any

from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats.base import Recipe
from ckptdoctor.formats.inert import DtypeName, StorageRecord, TensorRecord, TensorRows
from ckptdoctor.formats.lazy import LazySpecs, Sizes
from ckptdoctor.formats.source import corrupt
from ckptdoctor.formats.words import show
from ckptdoctor.trees import DTYPE_SIZES, Kind, TensorSpec

LARGEST = 2**62  # elements or bytes; torch counts in int64
MOST_DIMENSIONS = 256
ADVICE = "the file is damaged or was made to mislead; get it again from its source"
SUB_BYTE = {"bits16": 2}  # dtypes without a name in DTYPE_SIZES take one byte, as stored


def element_size(dtype: str) -> int:
    """Bytes per element as stored."""
    return DTYPE_SIZES.get(dtype) or SUB_BYTE.get(dtype, 1)


class Geometry:
    """What a (shape, strides) pair comes to; strides are None when contiguous."""

    __slots__ = ("extent", "shape", "strides")

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
        self.shape = shape
        numel = prod(shape)
        if strides is None or _contiguous(shape, strides, numel):
            self.strides, self.extent = None, numel
        else:
            self.strides = strides
            self.extent = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...], numel: int) -> bool:
    """As torch: dimensions of size 1 and empty tensors do not matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != expected:
                return numel == 0
            expected *= size
    return True


class Views:
    """Makes specs of the records of one file; raises CorruptCheckpointError naming the key."""

    def __init__(self, path: str, nbytes: Mapping[str, int]) -> None:
        self.path = path
        self.nbytes = nbytes  # storage id -> bytes that are really in the file
        self._geometry: dict[tuple[Any, Any], Geometry] = {}

    def _bad(self, key: str, what: str) -> CorruptCheckpointError:
        return corrupt(self.path, f"tensor {show(key)!r} {what}", ADVICE)

    def spec(self, record: TensorRecord, key: str, kind: Kind = "") -> TensorSpec:
        """The spec of a plain view, or the outside of a composite tensor (see `recipe`)."""
        storage = record.storage
        if not isinstance(storage, StorageRecord):
            return self._without_storage(record, key, kind)
        dtype = storage.dtype if record.dtype is None else self._dtype(record, key)
        geometry = self.geometry(record.size, record.stride, key)
        offset = record.offset
        if type(offset) is not int or not 0 <= offset <= LARGEST:
            raise self._bad(key, "begins outside its storage")
        root = storage
        end = (offset + geometry.extent) * (DTYPE_SIZES.get(dtype) or element_size(dtype))
        if storage.root is not None:
            if end > storage.nbytes:
                raise self._outside(key, end, storage.nbytes)
            root = storage.root
            offset += storage.root_offset
            end += storage.root_offset * element_size(dtype)
        there = self.nbytes[root.key]
        if end > there and geometry.extent:
            raise self._outside(key, end, there)
        return TensorSpec(
            geometry.shape,
            dtype,
            "param" if record.param else kind,
            root.device,
            geometry.strides,
            root.key,
            offset,
            there,
            record.layout,
        )

    def row_specs(self, rows: TensorRows) -> LazySpecs | None:
        """`plain_specs` of rows."""
        there = self.nbytes
        sizes = there.of(rows.storages) if isinstance(there, Sizes) else map(there.__getitem__, rows.storages)
        kinds = zip(rows.kinds, sizes, strict=True)
        known: dict[tuple[int, int], int] = {}
        first = list(map(known.setdefault, kinds, range(len(rows))))
        # One of each kind is looked up, and no table made of all.
        few = Views(self.path, {rows.storages[i]: size for (_, size), i in known.items()})
        try:
            specs = {i: few.spec(rows.record(i), rows.keys[i]) for i in known.values()}
        except CorruptCheckpointError:
            return None
        made = LazySpecs(rows.keys, list(map(specs.__getitem__, first)), rows.storages)
        made.kinds = tuple(specs.values())
        return made

    def plain_specs(self, records: Mapping[str, TensorRecord]) -> LazySpecs | None:
        """The specs of all records, each kind checked once; None where that cannot be done or one is wrong.

        A kind is all that `spec` looks at, so that what holds for one record of a kind holds for all.
        """
        keys, found = list(records), list(records.values())
        storages = [r.storage for r in found]
        sizes, strides, offsets = (
            [r.size for r in found],
            [r.stride for r in found],
            [r.offset for r in found],
        )
        plain = (
            set(map(type, storages)) == {StorageRecord}
            and [r.more for r in found].count(None) == len(found)
            and len(set(map(id, found))) == len(found)  # one tensor in several places stays one
            and set(map(type, offsets)) == {int}
            and set(map(type, sizes)) == set(map(type, strides)) == {tuple}
            # Numbers only: hashing anything else may never end.
            and set(map(type, chain(*sizes, *strides))) <= {int}
        )
        if not plain:
            return None
        names = [s.key for s in storages]
        tags = [s.dtype for s in storages], [s.device for s in storages]
        kinds = zip(sizes, strides, offsets, *tags, map(self.nbytes.__getitem__, names), strict=True)
        known: dict[tuple[Any, ...], int] = {}
        first = list(map(known.setdefault, kinds, range(len(found))))  # the first record of the same kind
        try:
            specs = {i: self.spec(found[i], keys[i]) for i in known.values()}
        except CorruptCheckpointError:
            return None  # whoever looks at each one by itself says which it is
        return LazySpecs(keys, [specs[i] for i in first], names)

    def _outside(self, key: str, needs: int, there: int) -> CorruptCheckpointError:
        return self._bad(key, f"needs {needs} bytes of its storage, which has {there}")

    def _dtype(self, record: TensorRecord, key: str) -> str:
        if type(record.dtype) is DtypeName:
            return record.dtype.name
        raise self._bad(key, "has an unknown dtype")

    def geometry(self, size: Any, stride: Any, key: str) -> Geometry:
        """Sizes and strides, checked: non-negative ints, equally many, no overflow."""
        try:
            sum(size)  # numbers only: hashing anything else may never end
            sum(stride)
            found = self._geometry.get((size, stride))
        except TypeError:  # lists, or something that is no size at all
            return self._new_geometry(size, stride, key)
        if found is None:
            found = self._geometry[size, stride] = self._new_geometry(size, stride, key)
        return found

    def _new_geometry(self, size: Any, stride: Any, key: str) -> Geometry:
        shape = self._ints(size, key, "sizes")
        strides = None if stride is None else self._ints(stride, key, "strides")
        if strides is not None and len(strides) != len(shape):
            raise self._bad(key, f"has {len(shape)} sizes and {len(strides)} strides")
        if prod(n or 1 for n in shape) > LARGEST:
            raise self._bad(key, "has sizes whose product overflows")
        return Geometry(shape, strides)

    def _ints(self, values: Any, key: str, what: str) -> tuple[int, ...]:
        if not isinstance(values, tuple | list) or len(values) > MOST_DIMENSIONS:
            raise self._bad(key, f"has no readable {what}")
        if not set(map(type, values)) <= {int}:
            raise self._bad(key, f"has {what} that are no whole numbers")
        if values and not 0 <= min(values) <= max(values) <= LARGEST:
            raise self._bad(key, f"has {what} that are negative or overflow")
        return tuple(values)

    def _without_storage(self, record: TensorRecord, key: str, kind: Kind) -> TensorSpec:
        """Sparse, nested, meta and wrapped tensors: shape and dtype, no bytes of their own."""
        if record.storage is not None:
            raise self._bad(key, "has no storage")
        parts = {role: self._part(part, key, role) for role, part in (record.parts or {}).items()}
        inner = parts.get("values") or parts.get("buffer")
        if record.layout == "nested" and inner is not None:
            shape: tuple[int, ...] = inner.shape
        else:
            shape = self.geometry(record.size, record.stride, key).shape
        dtype = inner.dtype if inner is not None and record.dtype is None else self._dtype(record, key)
        device = inner.device if inner is not None else "meta" if record.layout == "meta" else "cpu"
        return TensorSpec(shape, dtype, "param" if record.param else kind, device, layout=record.layout)

    def _part(self, part: Any, key: str, role: str) -> TensorSpec:
        if not isinstance(part, TensorRecord) or part.parts:
            raise self._bad(key, f"has no readable {role}")
        return self.spec(part, f"{key}:{role}")

    def recipe(self, record: TensorRecord, key: str) -> Recipe | None:
        """How a composite tensor is put together; None for a plain view."""
        if record.layout == "strided":
            return None
        parts = {role: self._part(part, key, role) for role, part in (record.parts or {}).items()}
        return Recipe(record.layout, parts, dict(record.values or {}))
