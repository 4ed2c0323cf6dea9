"""Filling a new file: headers and tensors go to places known beforehand, by a few threads.

Each thread has a run of consecutive places. Small ones are gathered into one write; large ones go through
a buffer that stays in the processor's cache, and are summed on the way. Nothing else is kept in memory.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.checksum import crc32
from ckptdoctor.formats.near import Near, read_whole
from ckptdoctor.formats.parallel import MOST, in_threads
from ckptdoctor.formats.source import corrupt
from ckptdoctor.formats.tensors import Span
from ckptdoctor.writers import writeback
from ckptdoctor.writers.pieces import Piece

BLOCK = 1 << 18  # bytes: larger ones leave the cache, smaller ones cost system calls
EARLY = 32 << 20  # bytes: what is sent to the disk at once; below a quarter of it is left to the fsync

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}

Tail = Callable[[int], bytes]  # CRC-32 of the piece -> what follows it
OnBytes = Callable[[int], None]


class Place(NamedTuple):
    """Consecutive bytes of the new file: ``head``, the piece, and what ``tail`` makes of its checksum."""

    offset: int
    head: bytes
    piece: Piece | None = None
    tail: Tail | None = None


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


def fill_places(
    descriptor: int, places: Sequence[Place], files: Files, on_bytes: OnBytes | None = None
) -> list[int]:
    """Write all; the CRC-32 of each piece (0 where there is none), in order.

    Raises ReadError when a source is not what it was, CorruptCheckpointError when its checksum does not
    fit, OSError, or what making a tensor raises.
    """
    sizes = [len(p.head) + (p.piece.nbytes if p.piece is not None else 0) for p in places]
    total = sum(sizes)
    job = _Job(descriptor, files, on_bytes)
    for path in {p.piece.span.file for p in places if p.piece is not None and p.piece.span is not None}:
        files.descriptor(path)  # opened here: `Files` is not made for several threads
    sums: list[int] = []
    for found in in_threads(job.run, _runs(places, sizes, total), total, stop=job.stop):
        sums += found
    return sums


def _runs(places: Sequence[Place], sizes: Sequence[int], total: int) -> list[Sequence[Place]]:
    """Consecutive places for each thread, about equally large; more runs than threads, for balance."""
    due = max(total // (MOST * 4), 4 << 20)
    runs, first, size = [], 0, 0
    for at, more in enumerate(sizes, start=1):
        size += more
        if size >= due:
            runs.append(places[first:at])
            first, size = at, 0
    return [*runs, places[first:]] if first < len(places) else runs


class _Job:
    """What the threads share."""

    def __init__(self, descriptor: int, files: Files, on_bytes: OnBytes | None) -> None:
        self.descriptor = descriptor
        self.files = files
        self.stop = threading.Event()
        self.making = threading.Lock()  # one tensor at a time: readers know no threads, and memory is dear
        self.on_bytes = on_bytes

    def run(self, places: Sequence[Place]) -> list[int]:
        writer = _Writer(self, places[0].offset)
        sums = []
        for _, head, piece, tail in places:
            writer.write(head)
            crc = self.one(writer, piece) if piece is not None and piece.nbytes else 0
            if tail is not None:
                writer.write(tail(crc))
            sums.append(crc)
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
            raise corrupt(span.file, f"the bytes at {span.offset} do not fit their checksum")
        return crc


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
        while data:
            done = os.pwrite(self._job.descriptor, data[: 4 * BLOCK], self._offset)
            data, self._offset = data[done:], self._offset + done
        if self._offset - self._sent >= EARLY:
            self._send()
        if self._job.on_bytes is not None:
            self._job.on_bytes(count)
