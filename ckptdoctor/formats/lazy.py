"""Specs and storages of a large file as columns; each becomes an object when somebody asks for it.

A file of a million tensors has a few dozen kinds of them (shape, dtype, strides, device). What is the same
for a kind is kept once, and was checked once.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from functools import cached_property
from typing import TypeVar

from ckptdoctor.formats.base import StorageRef
from ckptdoctor.trees import AlikeSpecs, TensorSpec

T = TypeVar("T")


class _Lazy(Mapping[str, T]):
    """A mapping that makes each value once; all of them when it is gone through."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = keys
        self._made: dict[str, T] = {}

    @abstractmethod
    def _make(self, i: int) -> T:
        """The value of the key at this place."""

    @cached_property
    def _index(self) -> dict[str, int]:
        return dict(zip(self._keys, range(len(self._keys)), strict=True))

    @cached_property
    def _all(self) -> dict[str, T]:
        made = self._made
        self._made = {k: made[k] if k in made else self._make(i) for i, k in enumerate(self._keys)}
        return self._made

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __getitem__(self, key: str) -> T:
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(self._index[key])
        return found

    def items(self) -> ItemsView[str, T]:
        """Those of a dict."""
        return self._all.items()

    def values(self) -> ValuesView[T]:
        """Those of a dict."""
        return self._all.values()

    def __eq__(self, other: object) -> bool:
        return self._all == (other._all if isinstance(other, _Lazy) else other)

    def __repr__(self) -> str:
        return repr(self._all)


class LazySpecs(_Lazy[TensorSpec], AlikeSpecs):
    """Specs of plain tensors: each like one of few ``kinds``, which ``column`` names, over its storage."""

    def __init__(self, keys: list[str], kinds: list[TensorSpec], storages: list[str]) -> None:
        super().__init__(keys)
        self.column, self.storages = kinds, storages

    @cached_property
    def kinds(self) -> tuple[TensorSpec, ...]:
        """One spec of each kind, with the storage of any."""
        return tuple({id(kind): kind for kind in self.column}.values())

    @cached_property
    def apart(self) -> bool:
        """Whether no storage belongs to two keys."""
        return len(set(self.storages)) == len(self.storages)

    def alike(self) -> Iterable[tuple[str, TensorSpec]]:
        """Each key with its kind."""
        return zip(self._keys, self.column, strict=True)

    def _make(self, i: int) -> TensorSpec:
        return over(self.column[i], self.storages[i])


def over(spec: TensorSpec, storage: str) -> TensorSpec:
    """The same spec over another storage; a third of what ``dataclasses.replace`` takes."""
    return TensorSpec(
        spec.shape,
        spec.dtype,
        spec.kind,
        spec.device,
        spec.strides,
        storage,
        spec.offset,
        spec.storage_bytes,
        spec.layout,
    )


class Sizes(_Lazy[int]):
    """The bytes of each storage."""

    def __init__(self, keys: list[str], nbytes: array[int]) -> None:
        super().__init__(keys)
        self._nbytes = nbytes

    def of(self, keys: list[str]) -> Iterable[int]:
        """Those of these storages, in that order."""
        return self._nbytes if keys == self._keys else map(self.__getitem__, keys)

    @property
    def total(self) -> int:
        """The bytes of all."""
        return sum(self._nbytes)

    def _make(self, i: int) -> int:
        return self._nbytes[i]


class LazyStorages(_Lazy[StorageRef]):
    """Storages that are whole stored members of one zip file, named ``folder`` and their key."""

    def __init__(
        self,
        keys: list[str],
        file: str,
        folder: str,
        columns: tuple[array[int], array[int], array[int] | None],  # offset, bytes, CRC-32
        tags: Sequence[tuple[str, str]],  # dtype and device of each kind
        kinds: Sequence[int],  # the number of the kind of each
        byteorder: str,
    ) -> None:
        super().__init__(keys)
        self.file, self.byteorder, self._folder = file, byteorder, folder
        self._offsets, self._nbytes, self._crcs = columns
        self._tags, self._kinds = tags, kinds

    @cached_property
    def sizes(self) -> Sizes:
        """The bytes of each."""
        return Sizes(self._keys, self._nbytes)

    def columns(self, keys: list[str]) -> tuple[Sequence[int], Sequence[int], list[str]]:
        """Offsets, bytes and dtypes of these storages."""
        dtypes = [dtype for dtype, _ in self._tags]
        if keys == self._keys:
            return self._offsets, self._nbytes, list(map(dtypes.__getitem__, self._kinds))
        numbers = list(map(self._index.__getitem__, keys))
        kinds = map(self._kinds.__getitem__, numbers)
        offsets, nbytes = (list(map(c.__getitem__, numbers)) for c in (self._offsets, self._nbytes))
        return offsets, nbytes, list(map(dtypes.__getitem__, kinds))

    @cached_property
    def devices(self) -> Counter[str]:
        """How many are on each device."""
        found: Counter[str] = Counter()
        if len({device for _, device in self._tags}) == 1:
            return Counter({self._tags[0][1]: len(self)})
        for number, count in Counter(self._kinds).items():
            found[self._tags[number][1]] += count
        return found

    def _make(self, i: int) -> StorageRef:
        dtype, device = self._tags[self._kinds[i]]
        return StorageRef(
            self.file,
            self._offsets[i],
            self._nbytes[i],
            dtype,
            device,
            crc=None if self._crcs is None else self._crcs[i],
            byteorder=self.byteorder,
            member=self._folder + self._keys[i],
        )

    def places(self, keys: list[str]) -> tuple[Sequence[int], Sequence[int], Sequence[int] | None] | None:
        """Offsets, bytes and CRC-32 of these storages; None where there is not each of them."""
        if keys == self._keys:
            return self._offsets, self._nbytes, self._crcs
        numbers = [self._index.get(key, -1) for key in keys]
        if -1 in numbers:
            return None
        offsets, nbytes = ([column[i] for i in numbers] for column in (self._offsets, self._nbytes))
        return offsets, nbytes, None if self._crcs is None else [self._crcs[i] for i in numbers]


def bytes_of(storages: Mapping[str, StorageRef]) -> int:
    """The bytes of all storages together."""
    if isinstance(storages, LazyStorages):
        return storages.sizes.total
    return sum(ref.nbytes for ref in storages.values())


def sizes_of(storages: Mapping[str, StorageRef]) -> Mapping[str, int]:
    """The bytes of each storage."""
    if isinstance(storages, LazyStorages):
        return storages.sizes
    return {key: ref.nbytes for key, ref in storages.items()}


def devices_of(storages: Mapping[str, StorageRef]) -> Counter[str]:
    """How many storages are on each device."""
    if isinstance(storages, LazyStorages):
        return Counter(storages.devices)
    return Counter(ref.device for ref in storages.values())


def columns_of(specs: Mapping[str, TensorSpec], keys: list[str]) -> tuple[list[TensorSpec], list[str]]:
    """For each of these keys a spec that is its own but for the storage, and the storage."""
    if isinstance(specs, LazySpecs):
        if keys == list(specs):
            return specs.column, specs.storages
        numbers = list(map(specs._index.__getitem__, keys))
        return [specs.column[i] for i in numbers], [specs.storages[i] for i in numbers]
    found = list(map(specs.__getitem__, keys))
    return found, [spec.storage for spec in found]


def forms_of(specs: Mapping[str, TensorSpec]) -> tuple[list[str], list[tuple[int, ...]], list[str]]:
    """Keys, shapes and dtypes."""
    keys = list(specs)
    kinds, _ = columns_of(specs, keys)
    return keys, [kind.shape for kind in kinds], [kind.dtype for kind in kinds]
