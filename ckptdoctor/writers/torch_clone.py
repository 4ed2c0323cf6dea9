"""A `.pth` that shares the blocks of its storages with the file that it comes from.

It is possible where the new file has all storages of the old one, whole, under their names and in their
order, as after a rename: the bytes between the first and the last of them, headers included, are then the
same, and only have to lie at the same place within a block. The pickle is padded for that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.source import FileSource
from ckptdoctor.formats.tensors import Span
from ckptdoctor.formats.torch_zip import zip_root
from ckptdoctor.formats.zip_directory import STORED, Directory
from ckptdoctor.formats.zip_members import Member as Old
from ckptdoctor.writers.clone import BLOCK, can_clone, share
from ckptdoctor.writers.enveloped import Outline
from ckptdoctor.writers.stream import OnBytes, Place, fill_places
from ckptdoctor.writers.torch_zip import Member, directory, finish, laid_out, members_of, places


def write_cloned(outline: Outline, descriptor: int, files: Files, on_bytes: OnBytes | None) -> bool:
    """Write the file without copying; False where that cannot be, with nothing of use in the new file.

    The bytes of tensors are not looked at, so their checksums are not checked.
    """
    spans = [piece.span for piece in outline.storages.values() if piece.span is not None]
    alike = {span.file for span in spans if span.whole and span.crc is not None}
    if len(spans) != len(outline.storages) or len(alike) != 1 or None in [s.crc for s in spans]:
        return False
    source = files.descriptor(spans[0].file)
    if not can_clone(source, descriptor):
        return False
    with FileSource(spans[0].file) as opened:
        found = Directory(opened)
        root = zip_root(opened.path, found)
    old = [found.members.get(f"{root}data/{name}") for name in outline.storages]
    aligned = _aligned(outline, root, [m for m in old if m is not None], spans)
    if None in old or aligned is None:
        return False
    members, first, shift = aligned
    return _write(members, first, shift, source, descriptor, spans, files, on_bytes)


def _aligned(
    outline: Outline, root: str, old: Sequence[Old], spans: Sequence[Span]
) -> tuple[list[Member], int, int] | None:
    """The new members, the number of the first storage, and how far storages move: the same for all."""
    members = members_of(outline.pickle, outline.storages, root, computable=outline.computable)
    first = next(n for n, member in enumerate(members) if member.piece is not None)
    if len(old) != len(spans):
        return None
    extra = (old[0].header - laid_out(members)[first].header) % BLOCK
    laid_out(members, extra)
    shift = members[first].header - old[0].header
    for new, was, span in zip(members[first:], old, spans, strict=False):
        same = (new.header - shift, new.start - shift, new.flags) == (was.header, span.offset, was.flags)
        if not same or was.method != STORED or was.size != new.size:
            return None
    return members, first, shift


def _write(
    members: list[Member],
    first: int,
    shift: int,
    source: int,
    descriptor: int,
    spans: Sequence[Span],
    files: Files,
    on_bytes: OnBytes | None,
) -> bool:
    start, end = members[first].header, members[first + len(spans) - 1].end
    shared = share(source, start - shift, descriptor, start, end - start)
    if shared is None:
        return False
    low, high = shared
    edges = [(start, low), (high, end)]
    around = [Place(a, os.pread(source, b - a, a - shift)) for a, b in edges]
    small = [Place(p.offset, p.head) for p in places(members) if p.piece is None][:-1]
    sums = [0] * first + [span.crc or 0 for span in spans] + [0] * (len(members) - first - len(spans) - 1)
    finish(members, sums)
    last = b"".join(p.head for p in places(members[-1:])) + directory(members, [*sums, 0])
    for place in (*small, *around, Place(members[-1].header, last)):  # not one behind the other
        fill_places(descriptor, [place], files)
    if on_bytes is not None:
        on_bytes(high - low)
    return True
