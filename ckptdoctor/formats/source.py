"""Reading bytes of a file at a place, bounded by its size; and the file object for the unpickler."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from types import TracebackType

from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats.words import show

ReadAt = Callable[[int, int], bytes]  # (offset, count) -> at most count bytes

PREFETCH = 128 * 1024  # what the C unpickler asks of peek()
PIPE_ADVICE = "save it to a regular file first"


def corrupt(path: str, what: str, advice: str = "download or copy the file again") -> CorruptCheckpointError:
    """The error for a damaged file, in the usual form: file, what was found, what to do."""
    return CorruptCheckpointError(f"{show(path)}: {what}; {advice}")


class FileSource:
    """An open file: `size`, and reads that are complete or raise CorruptCheckpointError.

    Plain reads and no mapping: a file that is truncated meanwhile gives an error and not SIGBUS.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            raise ReadError(f"{show(path)}: no such file; check the path") from None
        except OSError as error:
            raise ReadError(f"{show(path)}: cannot be opened ({error.strerror})") from error
        except ValueError as error:  # a null byte in the name
            raise ReadError(f"{show(path)}: {error}; check the path") from None
        self._stat = os.fstat(self.fd)
        if not stat.S_ISREG(self._stat.st_mode):
            os.close(self.fd)
            raise ReadError(f"{show(path)}: not a regular file; {PIPE_ADVICE}")
        self.size = self._stat.st_size

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def some(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`, fewer at the end of the file."""
        if offset + count > self.size:
            count = self.size - offset
        if count <= 0 or offset < 0:
            return b""
        try:
            return os.pread(self.fd, count, offset)
        except OSError as error:
            raise ReadError(f"{show(self.path)}: cannot be read ({error.strerror})") from error

    def each(self, offsets: Iterable[int], counts: Iterable[int]) -> Iterator[bytes]:
        """At most that many bytes from each offset, as far as the file is read now."""
        try:
            yield from map(os.pread, repeat(self.fd), counts, offsets)
        except OSError as error:
            raise ReadError(f"{show(self.path)}: cannot be read ({error.strerror})") from error

    def exactly(self, offset: int, count: int, what: str) -> bytes:
        """`count` bytes from `offset`; raises CorruptCheckpointError naming `what` if they are not there."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise corrupt(
                self.path,
                f"{what} should end at byte {offset + count}, the file has {self.size} (truncated?)",
            )
        data = self.some(offset, count)
        while len(data) < count:  # one read returns at most 2 GiB on Linux
            more = self.some(offset + len(data), count - len(data))
            if not more:
                raise ReadError(f"{show(self.path)}: became shorter while it was read; try again")
            data += more
        return data

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last write, as they were when the file was opened."""
        return self._stat.st_size, self._stat.st_mtime_ns

    def unchanged(self) -> None:
        """Raise ReadError if somebody wrote the file since it was opened."""
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != self.stamp:
            raise ReadError(f"{show(self.path)}: changed while it was read; try again when it is complete")


class Window:
    """A file object over bytes ``[start, end)``, made for `pickle.Unpickler`.

    It has ``peek``: without one the C unpickler calls ``read`` for every opcode, three times slower.
    A read never returns, or allocates, more than what is left.
    """

    def __init__(self, read_at: ReadAt, start: int, end: int) -> None:
        self.read_at = read_at
        self.position = start
        self.end = end

    def peek(self, count: int) -> bytes:
        """The next bytes, without moving on."""
        return self.read_at(self.position, min(max(count, PREFETCH), self.end - self.position))

    def read(self, count: int = -1) -> bytes:
        """Exactly `count` bytes, fewer at the end."""
        left = self.end - self.position
        count = left if count < 0 else min(count, left)
        data = self.read_at(self.position, count)
        while len(data) < count:
            more = self.read_at(self.position + len(data), count - len(data))
            if not more:
                break
            data += more
        self.position += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer`; the number of bytes that there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self) -> bytes:
        """Up to and with the next newline."""
        parts = []
        while True:
            piece = self.peek(PREFETCH)
            stop = piece.find(b"\n") + 1
            parts.append(self.read(stop or len(piece)))
            if stop or not piece:
                return b"".join(parts)


def window_of_bytes(data: bytes) -> Window:
    """A Window over bytes in memory."""
    return Window(lambda offset, count: data[offset : offset + count], 0, len(data))
