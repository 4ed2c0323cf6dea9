"""Records of one length that follow each other, read by columns: slices with a step, not one at a time."""

from __future__ import annotations

import sys
from array import array


class Rows:
    """``data`` as records of ``length`` bytes."""

    def __init__(self, data: bytes | bytearray, length: int) -> None:
        self._data = data
        self._length = length
        self.count = len(data) // length

    def all(self, expected: bytes, at: int) -> bool:
        """Whether each record holds these bytes at this offset."""
        columns = (self._data[at + i :: self._length] for i in range(len(expected)))
        return all(column.count(byte) == self.count for column, byte in zip(columns, expected, strict=True))

    def numbers(self, size: int, at: int) -> array[int]:
        """The little-endian numbers of ``size`` bytes at this offset, as 64-bit ones."""
        wide = bytearray(8 * self.count)
        for i in range(size):
            wide[i::8] = self._data[at + i :: self._length]
        found = array("Q", bytes(wide))
        if sys.byteorder == "big":
            found.byteswap()
        return found

    def texts(self, size: int, at: int) -> list[str] | None:
        """The ASCII texts of ``size`` bytes at this offset; None where one is none, or holds a null byte."""
        joined = bytearray((size + 1) * self.count)
        for i in range(size):
            joined[i :: size + 1] = self._data[at + i :: self._length]
        if not joined.isascii() or joined.count(0) != self.count:
            return None
        return joined[:-1].decode("ascii").split("\0")
