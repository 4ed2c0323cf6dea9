"""Keys that are copied as they are: bytes of the new file against bytes of the source, a piece at a time.

Nothing is mapped for that, and each piece is summed while the cache has it. What plain torch reads is known
by where its memory is: a mapped tensor *is* bytes of the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptdoctor.formats.blobs import PIECE, Files
from ckptdoctor.formats.checksum import crc32
from ckptdoctor.formats.lazy import columns_of
from ckptdoctor.formats.near import SMALL, Near, read_whole
from ckptdoctor.formats.parallel import in_threads
from ckptdoctor.plan.fills import Fill

if TYPE_CHECKING:
    from torch import Tensor

    from ckptdoctor.formats.spans import Span
    from ckptdoctor.formats.tensors import TensorReader
    from ckptdoctor.trees import ParamTree

MAPS = "/proc/self/maps"
RUN = 4 << 20  # bytes


class Pair(NamedTuple):
    """Two places that should hold the same bytes."""

    key: str
    due: Span
    found: Span
    nbytes: int


def copied(fills: Mapping[str, Fill], reader: Any, written: TensorReader, tree: ParamTree) -> dict[str, Pair]:
    """The keys of the new file that are bytes of the source, where both readers can tell the place."""
    if not hasattr(reader, "spans"):
        return {}
    sources = {
        key: fill.sources[0]
        for key, fill in fills.items()
        if fill.kind == "load" and not fill.ops and not fill.cast and key in tree
    }
    new, _ = columns_of(tree.specs, list(sources))
    old, _ = columns_of(reader.state_dict.tree.specs, list(sources.values()))
    dtypes = [spec.dtype for spec in new]
    spans = reader.spans(list(sources.values()), dtypes), written.spans(list(sources), dtypes)
    return {
        key: Pair(key, due, found, spec.nbytes)
        for key, due, found, spec, source in zip(sources, *spans, new, old, strict=True)
        if due is not None and found is not None and spec.shape == source.shape
    }


def differing(pairs: Iterable[Pair], old: Files, new: Files) -> dict[str, str]:
    """Key -> what is wrong with its bytes in the new file. Raises ReadError."""
    todo = list(pairs)
    for pair in todo:  # opened here: `Files` is not made for several threads
        old.descriptor(pair.due.file), new.descriptor(pair.found.file)
    found = in_threads(
        lambda run: _differences(run, old, new), list(_runs(todo)), sum(p.nbytes for p in todo)
    )
    return {key: words for run in found for key, words in run}


def _runs(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Consecutive pairs that are worth a thread's turn."""
    first = size = 0
    for at, pair in enumerate(pairs, start=1):
        size += pair.nbytes
        if size >= RUN:
            yield pairs[first:at]
            first, size = at, 0
    yield pairs[first:]


def _differences(pairs: Sequence[Pair], old: Files, new: Files) -> list[tuple[str, str]]:
    """Those keys of a run that are not as they should be; small ones near to each other are read at once."""
    due, found, wrong = Near(old), Near(new), []
    for pair in pairs:
        if pair.nbytes < SMALL:
            here = bytes(found.read(pair.found.file, pair.found.offset, pair.nbytes))
            same = here == bytes(due.read(pair.due.file, pair.due.offset, pair.nbytes))
            words = _words(pair, crc32(here) if same else None)
        else:
            words = _words(pair, _sum_if_same(pair, old, new))
        if words:
            wrong.append((pair.key, words))
    return wrong


def _words(pair: Pair, crc: int | None) -> str:
    """What is wrong with bytes that have this checksum; None: they are others."""
    if crc is None:
        return "differs from the source"
    return "" if pair.found.crc in (None, crc) else "does not fit its checksum in the new file"


def _sum_if_same(pair: Pair, old: Files, new: Files) -> int | None:
    """A piece at a time."""
    first, second = old.descriptor(pair.due.file), new.descriptor(pair.found.file)
    size = min(PIECE, pair.nbytes)
    a, b, crc, at = bytearray(size), bytearray(size), 0, 0
    while at < pair.nbytes:
        if pair.nbytes - at < size:
            size = pair.nbytes - at
            a, b = bytearray(size), bytearray(size)
        read_whole(first, memoryview(a), pair.due.offset + at, pair.due.file)
        read_whole(second, memoryview(b), pair.found.offset + at, pair.found.file)
        if a != b:
            return None
        crc, at = crc32(b, crc), at + size
    return crc


class Mapped:
    """Where this process has a file mapped; empty where the system does not tell (all but Linux)."""

    def __init__(self, path: Path) -> None:
        self._parts: list[tuple[int, int, int]] = []  # first address, last, offset in the file
        inode = os.stat(path).st_ino
        try:
            with open(MAPS, encoding="utf-8", errors="surrogateescape") as lines:
                rows = [line.split(None, 5) for line in lines]
        except OSError:
            return
        real = os.path.realpath(path)
        for row in rows:
            if len(row) == 6 and row[4] == str(inode) and row[5].rstrip("\n") == real:
                start, end = (int(n, 16) for n in row[0].split("-"))
                self._parts.append((start, end, int(row[2], 16)))

    def has(self, tensor: Tensor, span: Span, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether the tensor is exactly these bytes of the file. False where it may be, but is not proved."""
        plain = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
        if not plain or str(tensor.dtype) != f"torch.{dtype}" or tuple(tensor.shape) != shape:
            return False
        first = tensor.data_ptr()
        last = first + tensor.numel() * tensor.element_size()
        return any(
            start <= first < last <= end and first - start + offset == span.offset
            for start, end, offset in self._parts
        )
