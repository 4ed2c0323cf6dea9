"""A safetensors header with many tensors, read by columns: written as the format's own library writes it.

That is JSON without spaces, each tensor's fields in one order, the tensors in the order of their bytes. Any
other header, and every damaged one, is left to the JSON parser.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from ckptdoctor.formats.base import StorageRef
from ckptdoctor.formats.lazy import LazySpecs, LazyStorages
from ckptdoctor.trees import TensorSpec

FEW = 64  # tensors that are not worth it

# Neither escapes nor control characters, so each text means itself. Numbers are compared as text below.
_ROW = re.compile(
    r'"([^"\\\x00-\x1f]*)":\{"dtype":"([A-Z0-9_]+)","shape":\[([0-9,]*)\],"data_offsets":\[([0-9]+),([0-9]+)\]\}'
)
_METADATA = re.compile(r'\{"__metadata__":(\{[^{}\\]*\}),')

# dtype and sizes as the header has them -> shape, dtype, bytes; raises CorruptCheckpointError
Form = Callable[[str, list[int]], tuple[tuple[int, ...], str, int]]


class Rows(NamedTuple):
    """What a header says; ``metadata`` is its JSON."""

    specs: LazySpecs
    storages: LazyStorages
    metadata: str


class _Storages(LazyStorages):
    """Storages that are no members of anything."""

    def _make(self, i: int) -> StorageRef:
        return super()._make(i)._replace(member="")


def read_rows(text: str, path: str, start: int, form: Form) -> Rows | None:
    """The header of a file whose tensors begin at ``start``; None where it is no such one.

    The tensors follow each other without gap or overlap; the caller looks where the last one ends. Raises
    what ``form`` does.
    """
    head = _METADATA.match(text)
    at = head.end() if head is not None else 1
    parts = _ROW.split(text.rstrip(" ")[at:])
    between, keys, dtypes, shapes, begins, ends = (parts[i::6] for i in range(6))
    if len(keys) < FEW or between != ["", *[","] * (len(keys) - 1), "}"]:
        return None
    if text[0] != "{" or len(set(keys)) != len(keys) or "__metadata__" in keys:
        return None
    rows = list(zip(dtypes, shapes, strict=True))
    try:
        forms = {row: form(row[0], json.loads(f"[{row[1]}]")) for row in dict.fromkeys(rows)}
    except ValueError:
        return None
    nbytes = {row: found[2] for row, found in forms.items()}
    sizes = array("Q", map(nbytes.__getitem__, rows))
    stops = list(accumulate(sizes))
    texts = list(map(str, stops))
    if ends != texts or begins != ["0", *texts[:-1]]:
        return None
    kinds = {row: TensorSpec(shape, name, storage_bytes=size) for row, (shape, name, size) in forms.items()}
    tags = {row: (name, "cpu") for row, (_, name, _) in forms.items()}
    numbers = {row: n for n, row in enumerate(forms)}
    offsets = array("Q", [start, *map(start.__add__, stops[:-1])])
    storages = _Storages(
        keys,
        path,
        "",
        (offsets, sizes, None),
        list(tags.values()),
        list(map(numbers.__getitem__, rows)),
        "little",
    )
    specs = LazySpecs(keys, list(map(kinds.__getitem__, rows)), keys)
    return Rows(specs, storages, head[1] if head is not None else "{}")
