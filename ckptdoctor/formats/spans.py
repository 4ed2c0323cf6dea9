"""Where tensors are in a file, as bytes that can be copied as they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import repeat
from typing import NamedTuple

from ckptdoctor.formats.base import StorageRef
from ckptdoctor.formats.lazy import LazyStorages, columns_of
from ckptdoctor.formats.views import element_size
from ckptdoctor.trees import TensorSpec


class Span(NamedTuple):
    """The bytes of one tensor in a file."""

    file: str
    offset: int
    crc: int | None  # of exactly these bytes, where the file says so
    whole: bool  # they are a whole storage
    storage: str = ""  # the id of that storage


def span_of(spec: TensorSpec, ref: StorageRef) -> Span | None:
    """The span of a plain tensor over this storage; None where its bytes are no tensor as they are."""
    if spec.strides is not None or spec.layout != "strided" or ref.compression or ref.inline:
        return None
    itemsize = element_size(spec.dtype)
    if ref.byteorder != "little" and itemsize > 1:
        return None
    whole = spec.nbytes == ref.nbytes
    at = ref.offset + spec.offset * itemsize
    return Span(ref.file, at, ref.crc if whole else None, whole, spec.storage)


def whole_spans(
    specs: Mapping[str, TensorSpec], keys: list[str], dtypes: list[str], storages: Mapping[str, StorageRef]
) -> list[Span | None] | None:
    """`span_of` these keys by columns; None unless each has its dtype and is a whole storage of one zip."""
    found, names = columns_of(specs, keys)
    if [spec.dtype for spec in found] != dtypes or not isinstance(storages, LazyStorages):
        return None
    columns = storages.places(names)
    kinds = {id(spec): spec for spec in found}
    plain = all(spec.strides is None and spec.layout == "strided" for spec in kinds.values())
    if columns is None or not plain or storages.byteorder != "little":
        return None
    offsets, sizes, sums = columns
    nbytes = {number: spec.nbytes for number, spec in kinds.items()}
    if list(sizes) != list(map(nbytes.__getitem__, map(id, found))):
        return None
    rows = zip(repeat(storages.file), offsets, sums or repeat(None), repeat(True), names, strict=False)
    return list(map(partial(tuple.__new__, Span), rows))  # what Span(*row) does, without its arguments
