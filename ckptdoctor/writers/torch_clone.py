"""A `.pth` that shares the blocks of its storages with the file that it comes from.

It is possible where the new file has all storages of the old one, whole, under their names and in their
order, as after a rename: the bytes between the first and the last of them, headers included, are then the
same, and only have to lie at the same place within a block. The pickle is padded for that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.source import FileSource
from ckptdoctor.formats.spans import Span
from ckptdoctor.formats.torch_zip import zip_root
from ckptdoctor.formats.zip_directory import STORED, Directory
from ckptdoctor.formats.zip_members import Member as Old
from ckptdoctor.writers.clone import BLOCK, can_clone, share
from ckptdoctor.writers.enveloped import Outline
from ckptdoctor.writers.stream import OnBytes, put
from ckptdoctor.writers.torch_zip import TorchZip


def write_cloned(outline: Outline, descriptor: int, files: Files, on_bytes: OnBytes | None) -> bool:
    """Write the file without copying; False where that cannot be, with nothing of use in the new file.

    The bytes of tensors are not looked at, so their checksums are not checked.
    """
    first = next((piece.span for piece in outline.storages.values()), None)
    if first is None or not can_clone(source := files.descriptor(first.file), descriptor):
        return False
    spans = [piece.span for piece in outline.storages.values() if piece.span is not None]
    alike = {span.file for span in spans if span.whole and span.crc is not None}
    if len(spans) != len(outline.storages) or len(alike) != 1 or None in [s.crc for s in spans]:
        return False
    with FileSource(spans[0].file) as opened:
        found = Directory(opened)
        root = zip_root(opened.path, found)
    old = [found.members.get(f"{root}data/{name}") for name in outline.storages]
    aligned = _aligned(outline, root, [m for m in old if m is not None], spans)
    if None in old or aligned is None:
        return False
    return _write(*aligned, source, descriptor, [span.crc or 0 for span in spans], on_bytes)


def _aligned(
    outline: Outline, root: str, old: Sequence[Old], spans: Sequence[Span]
) -> tuple[TorchZip, int] | None:
    """The new file, and how far storages move in it: the same for all."""
    if len(old) != len(spans):
        return None
    zipped = partial(TorchZip, outline.pickle, outline.storages, root, computable=outline.computable)
    made = zipped()
    made = zipped(extra=(old[0].header - made.layout.headers[made.first]) % BLOCK)
    layout = made.layout
    shift = layout.headers[made.first] - old[0].header
    for i, (was, span) in enumerate(zip(old, spans, strict=True), start=made.first):
        new = layout.headers[i] - shift, layout.starts[i] - shift, layout.flags(i), layout.sizes[i], STORED
        if new != (was.header, span.offset, was.flags, was.size, was.method):
            return None
    return made, shift


def _write(
    made: TorchZip, shift: int, source: int, descriptor: int, sums: Sequence[int], on_bytes: OnBytes | None
) -> bool:
    start, end = (made.layout.headers[i] for i in (made.first, made.last))
    shared = share(source, start - shift, descriptor, start, end - start)
    if shared is None:
        return False
    low, high = shared
    put(descriptor, 0, made.front())
    for a, b in ((start, low), (high, end)):
        put(descriptor, a, os.pread(source, b - a, a - shift))
    put(descriptor, end, made.behind(sums))
    if on_bytes is not None:
        on_bytes(high - low)
    return True
