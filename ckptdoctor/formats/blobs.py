"""The bytes of one storage, read into memory of the caller, with their checksum."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats.base import StorageRef
from ckptdoctor.formats.source import corrupt
from ckptdoctor.formats.words import show

CHUNK = 1 << 20


class Files:
    """The files of one archive, opened once each; they must be as they were."""

    def __init__(self, stats: dict[str, tuple[int, int]] | None = None) -> None:
        self._open: dict[str, int] = {}
        self._stats: dict[str, tuple[int, int]] = stats or {}

    def descriptor(self, path: str) -> int:
        """A read-only descriptor; raises ReadError if the file is gone."""
        if path not in self._open:
            try:
                self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            except OSError as error:
                raise ReadError(f"{show(path)}: cannot be opened ({error.strerror})") from error
        return self._open[path]

    def close(self) -> None:
        """Close all."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


def packed(files: Files, ref: StorageRef) -> Iterator[bytes]:
    """The bytes as they are in the file, in pieces."""
    if ref.inline is not None:
        yield ref.inline
        return
    descriptor = files.descriptor(ref.file)
    position, end = ref.offset, ref.offset + (ref.compressed_bytes if ref.compression else ref.nbytes)
    while position < end:
        piece = os.pread(descriptor, min(CHUNK, end - position), position)
        if not piece:
            raise ReadError(f"{show(ref.file)}: became shorter since it was inspected; try again")
        position += len(piece)
        yield piece


def pieces(files: Files, ref: StorageRef) -> Iterator[bytes]:
    """The bytes of the storage, unpacked, exactly ``ref.nbytes`` in all."""
    if not ref.compression:
        yield from packed(files, ref)
        return
    stream = zlib.decompressobj(-15)
    total = 0
    try:
        for raw in packed(files, ref):
            while raw:
                piece = stream.decompress(raw, CHUNK)
                total += len(piece)
                if total > ref.nbytes:
                    raise _damaged(ref)
                yield piece
                raw = stream.unconsumed_tail
    except zlib.error:
        raise _damaged(ref) from None
    if total != ref.nbytes or not stream.eof:
        raise _damaged(ref)


def _damaged(ref: StorageRef) -> CorruptCheckpointError:
    return corrupt(ref.file, f"the compressed bytes of {show(ref.member)!r} are damaged")


def fill(files: Files, ref: StorageRef, buffer: memoryview, *, check: bool) -> bool:
    """Read the storage into `buffer` (``ref.nbytes`` long). False if its checksum does not fit."""
    crc, at = 0, 0
    for piece in pieces(files, ref):
        buffer[at : at + len(piece)] = piece
        at += len(piece)
        if check and ref.crc is not None:
            crc = zlib.crc32(piece, crc)
    return not check or ref.crc is None or crc == ref.crc


def crc_fits(files: Files, ref: StorageRef) -> bool:
    """Does the checksum fit? True where there is none."""
    crc = 0
    for piece in pieces(files, ref):
        crc = zlib.crc32(piece, crc)
    return ref.crc is None or crc == ref.crc
