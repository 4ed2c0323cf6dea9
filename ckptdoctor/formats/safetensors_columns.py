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

# dtype and sizes as the header has them -> shape, dtype, bytes
Form = Callable[[str, list[int]], tuple[tuple[int, ...], str, int]]


class Header(NamedTuple):
    """What a header says; ``metadata`` is its JSON."""

    specs: LazySpecs
    storages: LazyStorages
    metadata: str


class _Columns(NamedTuple):
    keys: list[str]
    kinds: list[tuple[str, str]]  # dtype and sizes, as texts
    begins: list[str]
    ends: list[str]


class _Storages(LazyStorages):
    """Storages that are no members of anything."""

    def _make(self, i: int) -> StorageRef:
        return super()._make(i)._replace(member="")


def read_columns(text: str, path: str, start: int, form: Form) -> Header | None:
    """The header of a file whose tensors begin at ``start``; None where it is no such one.

    The tensors follow each other without gap or overlap; the caller looks where the last one ends. Raises
    what ``form`` does.
    """
    head = _METADATA.match(text)
    found = _split(text, head.end() if head is not None else 1)
    try:
        kinds = dict.fromkeys(found.kinds) if found is not None else {}
        forms = {kind: form(kind[0], json.loads(f"[{kind[1]}]")) for kind in kinds}
    except ValueError:
        return None
    sizes = _sizes(found, {kind: nbytes for kind, (_, _, nbytes) in forms.items()}) if found else None
    if found is None or sizes is None:
        return None
    specs = {kind: TensorSpec(shape, name, storage_bytes=n) for kind, (shape, name, n) in forms.items()}
    numbers = {kind: n for n, kind in enumerate(forms)}
    offsets = array("Q", accumulate(sizes[:-1], initial=start))
    tags = [(name, "cpu") for _, name, _ in forms.values()]
    of = list(map(numbers.__getitem__, found.kinds))
    return Header(
        LazySpecs(found.keys, list(map(specs.__getitem__, found.kinds)), found.keys),
        _Storages(found.keys, path, "", (offsets, sizes, None), tags, of, "little"),
        head[1] if head is not None else "{}",
    )


def _split(text: str, at: int) -> _Columns | None:
    """The tensors of the text from there on; None where anything else is between or around them."""
    parts = _ROW.split(text.rstrip(" ")[at:])
    between, keys, dtypes, shapes, begins, ends = (parts[i::6] for i in range(6))
    if len(keys) < FEW or between != ["", *[","] * (len(keys) - 1), "}"]:
        return None
    if text[0] != "{" or len(set(keys)) != len(keys) or "__metadata__" in keys:
        return None
    return _Columns(keys, list(zip(dtypes, shapes, strict=True)), begins, ends)


def _sizes(found: _Columns, nbytes: dict[tuple[str, str], int]) -> array[int] | None:
    """The bytes of each tensor; None where one is not at once behind the one before, or has others."""
    sizes = array("Q", map(nbytes.__getitem__, found.kinds))
    stops = list(map(str, accumulate(sizes)))
    return sizes if found.ends == stops and found.begins == ["0", *stops[:-1]] else None
