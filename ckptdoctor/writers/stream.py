"""Filling a new file: headers and tensors go to places known beforehand, by a few threads.

Each thread has a run of consecutive rows. Tiny tensors that are near to each other in their file are read,
summed and written together; small ones are gathered into one write; large ones go through a buffer that
stays in the processor's cache, and are summed on the way. Nothing else is kept in memory.
"""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.checksum import crc32
from ckptdoctor.formats.near import PAGE, Near, read_whole
from ckptdoctor.formats.parallel import MOST, in_threads
from ckptdoctor.formats.source import corrupt
from ckptdoctor.formats.spans import Span
from ckptdoctor.writers import writeback
from ckptdoctor.writers.pieces import Piece

BLOCK = 1 << 18  # bytes: larger ones leave the cache, smaller ones cost system calls
EARLY = 32 << 20  # bytes: what is sent to the disk at once; below a quarter of it is left to the fsync
TINY = PAGE  # bytes of a tensor: its copy takes less than the work around it

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}

OnBytes = Callable[[int], None]


def _no_heads(first: int, last: int) -> list[bytes]:
    return [b""] * (last - first)


def _no_tails(first: int, sums: Sequence[int]) -> list[bytes]:
    return [b""] * len(sums)


@dataclass(frozen=True)
class Rows:
    """Consecutive bytes of the new file: for each piece a head, the piece, and a tail.

    ``places`` are where each head begins, and the end of all. ``heads(first, last)`` gives those of some
    pieces; ``tails(first, sums)`` those of the pieces from one on that have these CRC-32.
    """

    pieces: Sequence[Piece]
    places: Sequence[int]
    heads: Callable[[int, int], list[bytes]] = _no_heads
    tails: Callable[[int, Sequence[int]], list[bytes]] = _no_tails


def allocate(descriptor: int, size: int) -> None:
    """Reserve the space, so that a full disk is known now and the file is laid out in one go."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    os.truncate(descriptor, size)


def put(descriptor: int, offset: int, data: bytes | memoryview) -> None:
    """Write all of it there."""
    left = memoryview(data)
    while left:
        done = os.pwrite(descriptor, left[: 4 * BLOCK], offset)
        left, offset = left[done:], offset + done


def fill_rows(descriptor: int, rows: Rows, files: Files, on_bytes: OnBytes | None = None) -> list[int]:
    """Write all; the CRC-32 of each piece, in order.

    Raises ReadError when a source is not what it was, CorruptCheckpointError when its checksum does not
    fit, OSError, or what making a tensor raises.
    """
    if not rows.pieces:
        return []
    job = _Job(descriptor, rows, files, on_bytes)
    for path in {piece.span.file for piece in rows.pieces if piece.span is not None}:
        files.descriptor(path)  # opened here: `Files` is not made for several threads
    total = rows.places[-1] - rows.places[0]
    sums: list[int] = []
    for found in in_threads(job.run, list(_runs(rows.places, total)), total, stop=job.stop):
        sums += found
    return sums


def _runs(places: Sequence[int], total: int) -> Iterator[tuple[int, int]]:
    """Consecutive rows for each thread, about equally large; more runs than threads, for balance."""
    due = max(total // (MOST * 4), 4 << 20)
    first, count = 0, len(places) - 1
    while first < count:
        last = min(bisect_left(places, places[first] + due, first + 1), count)
        yield first, last
        first = last


class _Job:
    """What the threads share."""

    def __init__(self, descriptor: int, rows: Rows, files: Files, on_bytes: OnBytes | None) -> None:
        self.descriptor = descriptor
        self.rows = rows
        self.files = files
        self.stop = threading.Event()
        self.making = threading.Lock()  # one tensor at a time: readers know no threads, and memory is dear
        self.on_bytes = on_bytes

    def run(self, run: tuple[int, int]) -> list[int]:
        rows, (first, last), sums = self.rows, run, []
        writer = _Writer(self, rows.places[first])
        for begin, end in _together(rows.pieces, first, last):
            if end - begin > 1:
                sums += self.many(writer, begin, end)
                continue
            piece = rows.pieces[begin]
            writer.write(rows.heads(begin, end)[0])
            sums.append(self.one(writer, piece) if piece.nbytes else 0)
            writer.write(rows.tails(begin, sums[-1:])[0])
        writer.end()
        return sums

    def one(self, writer: _Writer, piece: Piece) -> int:
        span = piece.span
        if span is None:
            with self.making:
                content = piece.content()
                writer.write(content)
                writer.flush()
                return crc32(content)
        crc = writer.copy(span, piece.nbytes)
        if span.crc is not None and span.crc != crc:
            raise _changed(span)
        return crc

    def many(self, writer: _Writer, begin: int, end: int) -> list[int]:
        """Tiny pieces that are near to each other in one file, with what is around them in the new one."""
        pieces = self.rows.pieces[begin:end]
        spans = [piece.span for piece in pieces if piece.span is not None]
        first, last = spans[0].offset, spans[-1].offset + pieces[-1].nbytes
        data = writer.read(spans[0].file, first, last - first)
        contents = [
            data[s.offset - first : s.offset - first + p.nbytes] for s, p in zip(spans, pieces, strict=True)
        ]
        sums = list(map(crc32, contents))
        for span, crc in zip(spans, sums, strict=True):
            if span.crc != crc and span.crc is not None:
                raise _changed(span)
        around = self.rows.heads(begin, end), contents, self.rows.tails(begin, sums)
        writer.write(b"".join(chain.from_iterable(zip(*around, strict=True))))
        return sums


def _changed(span: Span) -> Exception:
    return corrupt(span.file, f"the bytes at {span.offset} do not fit their checksum")


def _together(pieces: Sequence[Piece], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Parts of these pieces: tiny ones that follow each other in one file, and each of the others alone."""
    begin, file, start, end = first, "", 0, 0
    for at in range(first, last):
        piece = pieces[at]
        span = piece.span
        if span is not None and 0 < piece.nbytes < TINY:
            stop = span.offset + piece.nbytes
            if 0 <= span.offset - end < PAGE and stop - start <= BLOCK and span.file == file:
                end = stop
                continue
            if at > begin:
                yield begin, at
            begin, file, start, end = at, span.file, span.offset, stop
        else:
            if at > begin:
                yield begin, at
            begin, file = at, ""
    yield begin, last


class _Writer:
    """Writes at ``offset`` and onwards."""

    def __init__(self, job: _Job, offset: int) -> None:
        self._job = job
        self._offset = offset  # of what is in the buffer
        self._sent = offset  # up to here the disk has, or is getting it
        self._small = bytearray()
        self._large: memoryview | None = None
        self._near = Near(job.files)

    def write(self, data: bytes | memoryview) -> None:
        if len(data) >= BLOCK:
            self.flush()
            self._put(memoryview(data))
            return
        self._small += data
        if len(self._small) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        if self._small:
            self._put(memoryview(self._small))
            self._small = bytearray()

    def end(self) -> None:
        self.flush()
        if self._offset - self._sent >= EARLY // 4:
            self._send()

    def _send(self) -> None:
        writeback.begin(self._job.descriptor, self._sent, self._offset - self._sent)
        self._sent = self._offset

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """Those bytes of a source."""
        data = bytearray(nbytes)
        read_whole(self._job.files.descriptor(path), memoryview(data), offset, path)
        return bytes(data)

    def copy(self, span: Span, left: int) -> int:
        if left < BLOCK // 2:
            data = self._near.read(span.file, span.offset, left)
            self.write(data)
            return crc32(data)
        self.flush()
        if self._large is None:
            self._large = memoryview(bytearray(BLOCK))
        descriptor, offset, crc = self._job.files.descriptor(span.file), span.offset, 0
        while left:
            # Up to a multiple of BLOCK in the new file: file systems copy whole pages faster.
            chunk = self._large[: min(left, BLOCK - self._offset % BLOCK)]
            read_whole(descriptor, chunk, offset, span.file)
            crc = crc32(chunk, crc)
            self._put(chunk)
            offset, left = offset + len(chunk), left - len(chunk)
        return crc

    def _put(self, data: memoryview) -> None:
        if self._job.stop.is_set():
            raise InterruptedError("another thread has failed")
        count = len(data)
        put(self._job.descriptor, self._offset, data)
        self._offset += count
        if self._offset - self._sent >= EARLY:
            self._send()
        if self._job.on_bytes is not None:
            self._job.on_bytes(count)
