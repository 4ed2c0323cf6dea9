"""The bytes of one storage, read into memory of the caller, with their checksum."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping

from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats.base import Stamp, StorageRef
from ckptdoctor.formats.checksum import crc32
from ckptdoctor.formats.mapping import FileMap
from ckptdoctor.formats.source import corrupt
from ckptdoctor.formats.words import show

CHUNK = 1 << 20
PIECE = 1 << 18  # what is copied or summed at once: small enough to stay in the processor's cache


class Files:
    """The files of one archive, opened once each; they must be as they were when they were inspected."""

    def __init__(self, stamps: Mapping[str, Stamp] | None = None) -> None:
        self._open: dict[str, int] = {}
        self._maps: dict[str, FileMap | None] = {}
        self._stamps = stamps or {}

    def descriptor(self, path: str) -> int:
        """A read-only descriptor; raises ReadError if the file is gone, or was written since."""
        if path not in self._open:
            try:
                self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            except OSError as error:
                raise ReadError(f"{show(path)}: cannot be opened ({error.strerror})") from error
            self._unchanged(path)
        return self._open[path]

    def mapped(self, path: str) -> FileMap | None:
        """The file as memory; None where the system refuses that."""
        if path not in self._maps:
            descriptor = self.descriptor(path)
            try:
                self._maps[path] = FileMap(descriptor, os.fstat(descriptor).st_size)
            except (OSError, ValueError):
                self._maps[path] = None
            self._unchanged(path)
        return self._maps[path]

    def unchanged(self) -> None:
        """Raise ReadError if one of the opened files was written since it was inspected."""
        for path in self._open:
            self._unchanged(path)

    def _unchanged(self, path: str) -> None:
        now = os.fstat(self._open[path])
        due = self._stamps.get(path, (now.st_size, now.st_mtime_ns))
        if due != (now.st_size, now.st_mtime_ns):
            what = "became shorter" if now.st_size < due[0] else "was written"
            raise ReadError(f"{show(path)}: {what} since it was inspected; try again")

    def close(self) -> None:
        """Close all. What is mapped stays so as long as it is used."""
        self._maps.clear()
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _became_shorter(ref: StorageRef) -> ReadError:
    return ReadError(f"{show(ref.file)}: became shorter since it was inspected; try again")


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
            raise _became_shorter(ref)
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
    check = check and ref.crc is not None
    if ref.compression or ref.inline is not None:
        crc, at = 0, 0
        for piece in pieces(files, ref):
            buffer[at : at + len(piece)] = piece
            at += len(piece)
            crc = crc32(piece, crc) if check else 0
        return not check or crc == ref.crc
    return _read_into(files, ref, buffer, check)


def _read_into(files: Files, ref: StorageRef, buffer: memoryview, check: bool) -> bool:
    """Without a copy in between; each piece is summed while the cache still has it."""
    descriptor = files.descriptor(ref.file)
    crc = at = 0
    while at < ref.nbytes:
        piece = buffer[at : min(at + PIECE, ref.nbytes)]
        count = read_at(descriptor, piece, ref.offset + at, ref.file)
        if not count:
            raise _became_shorter(ref)
        crc = crc32(piece[:count], crc) if check else 0
        at += count
    return not check or crc == ref.crc


def read_at(descriptor: int, buffer: memoryview, offset: int, path: str) -> int:
    """Read into `buffer` from that place; how many bytes there were. Raises ReadError naming `path`."""
    try:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [buffer], offset)
        data = os.pread(descriptor, len(buffer), offset)  # macOS before 11, Windows
    except OSError as error:
        raise ReadError(f"{show(path)}: cannot be read ({error.strerror})") from error
    buffer[: len(data)] = data
    return len(data)


def mapped_crc_fits(files: Files, ref: StorageRef) -> bool:
    """:func:`crc_fits` for bytes that are used where the file is mapped, through that map if possible."""
    if ref.crc is None:
        return True
    file = files.mapped(ref.file)
    crc = None if file is None else file.crc32(ref.offset, ref.nbytes)
    return crc_fits(files, ref) if crc is None else crc == ref.crc


def crc_fits(files: Files, ref: StorageRef) -> bool:
    """Does the checksum fit? True where there is none."""
    if ref.crc is None:
        return True
    crc = 0
    if ref.compression or ref.inline is not None:
        for piece in pieces(files, ref):
            crc = crc32(piece, crc)
        return crc == ref.crc
    descriptor, buffer, at = files.descriptor(ref.file), memoryview(bytearray(min(PIECE, ref.nbytes))), 0
    while at < ref.nbytes:
        count = read_at(descriptor, buffer[: min(PIECE, ref.nbytes - at)], ref.offset + at, ref.file)
        if not count:
            raise _became_shorter(ref)
        crc = crc32(buffer[:count], crc)
        at += count
    return crc == ref.crc
