"""Reading bytes of a file at places that may be near to each other."""

from __future__ import annotations

from ckptdoctor.errors import ReadError
from ckptdoctor.formats.blobs import PIECE, Files, read_at
from ckptdoctor.formats.words import show

PAGE = 1 << 12
SMALL = PIECE // 8  # bytes: larger ones are read alone


class Near:
    """Small pieces of a file: those that follow each other are read together, ever more of them at once."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._path, self._at, self._data = "", 0, memoryview(b"")
        self._ahead = PAGE

    def read(self, path: str, offset: int, nbytes: int) -> memoryview:
        """Those bytes, valid until the next call."""
        start = offset - self._at
        if start < 0 or start + nbytes > len(self._data) or path != self._path:
            self._load(path, offset, nbytes)
            start = 0
        return self._data[start : start + nbytes]

    def _load(self, path: str, offset: int, nbytes: int) -> None:
        follows = path == self._path and 0 <= offset - self._at < len(self._data) + self._ahead
        self._ahead = min(4 * self._ahead, PIECE) if follows else PAGE
        size = max(nbytes, self._ahead) if nbytes < SMALL else nbytes
        buffer, descriptor = memoryview(bytearray(size)), self._files.descriptor(path)
        count = read_at(descriptor, buffer, offset, path)
        if count < nbytes:
            read_whole(descriptor, buffer[count:nbytes], offset + count, path)
            count = nbytes
        self._path, self._at, self._data = path, offset, buffer[:count]


def read_whole(descriptor: int, into: memoryview, offset: int, path: str) -> None:
    """Fill ``into`` with the bytes from ``offset`` on. Raises ReadError when there are fewer."""
    while into:
        count = read_at(descriptor, into, offset, path)
        if not count:
            raise ReadError(f"{show(path)}: became shorter since it was inspected; try again")
        into, offset = into[count:], offset + count
