"""The usual tensors of a file, found for all keys at once: each all of a storage that no other key uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import NamedTuple

from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.formats.lazy import LazyStorages, columns_of
from ckptdoctor.formats.mapping import ALIGNED
from ckptdoctor.formats.views import element_size
from ckptdoctor.trees import TensorSpec


class Kind(NamedTuple):
    """What is the same for many tensors."""

    dtype: str
    shape: tuple[int, ...]
    numel: int
    itemsize: int
    nbytes: int


class Whole(NamedTuple):
    """One such tensor; ``offset`` counts bytes in ``file``."""

    storage: str
    file: str
    offset: int
    kind: Kind


_Row = tuple[str, Kind | None, str, str, str, int, int, str]


def whole_tensors(
    archive: Archive, state_dict: StateDict, users: Mapping[str, int], byteorder: str
) -> dict[str, Whole]:
    """Those of a state dict whose bytes can be used where the file is mapped; ``users`` counts by storage."""
    return {
        key: Whole(storage, file, offset, kind)
        for key, kind, storage, file, order, offset, nbytes, dtype in _rows(archive, state_dict)
        if kind is not None
        and nbytes == kind.nbytes > 0
        and dtype == kind.dtype
        and users[storage] == 1
        and (order == byteorder or kind.itemsize == 1)
        and (not offset % ALIGNED or not offset % kind.itemsize)
    }


def _rows(archive: Archive, state_dict: StateDict) -> Iterator[_Row]:
    """All keys with their kinds (None for those that are no plain tensors) and storages."""
    specs, storages = columns_of(state_dict.tree.specs), archive.storages
    if specs is not None and isinstance(storages, LazyStorages) and not state_dict.recipes:
        kinds = {id(spec): _kind(spec) for spec in specs.kinds}
        of = map(kinds.__getitem__, map(id, specs.column))
        same = repeat(storages.file), repeat(storages.byteorder)
        return zip(specs, of, specs.storages, *same, *storages.columns(specs.storages), strict=False)
    return _one_by_one(archive, state_dict)


def _one_by_one(archive: Archive, state_dict: StateDict) -> Iterator[_Row]:
    for key, spec in state_dict.tree.specs.items():
        ref = archive.storages.get(spec.storage)
        if ref is not None and not ref.compression and ref.inline is None and key not in state_dict.recipes:
            yield key, _kind(spec), spec.storage, ref.file, ref.byteorder, ref.offset, ref.nbytes, ref.dtype


def _kind(spec: TensorSpec) -> Kind | None:
    if spec.layout != "strided" or spec.strides is not None:
        return None
    itemsize, numel = element_size(spec.dtype), spec.numel
    return Kind(spec.dtype, spec.shape, numel, itemsize, numel * itemsize)
