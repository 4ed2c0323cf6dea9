"""Records of one length that follow each other, read by columns: slices with a step, not one at a time.

Columns of 64-bit numbers are added and compared as one long integer each, which is faster than one by one.
"""

from __future__ import annotations

import sys
from array import array
from operator import gt


class Rows:
    """``data`` as records of ``length`` bytes."""

    def __init__(self, data: bytes | bytearray, length: int) -> None:
        self._data = data
        self._length = length
        self.count = len(data) // length

    def all(self, expected: bytes, at: int) -> bool:
        """Whether each record holds these bytes at this offset."""
        columns = (self._data[at + i :: self._length] for i in range(len(expected)))
        return all(
            column == bytes([byte]) * self.count for column, byte in zip(columns, expected, strict=True)
        )

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


def added(first: array[int], second: array[int]) -> array[int] | None:
    """The sums of two columns; None where one could be too large for them."""
    if not (_small(first) and _small(second)):
        return None
    return array("Q", (_whole(first) + _whole(second)).to_bytes(8 * len(first), sys.byteorder))


def any_above(first: array[int], second: array[int]) -> bool:
    """Whether a number of the first column is larger than the one beside it."""
    if not (_small(first) and _small(second)):
        return any(map(gt, first, second))
    # With their highest bits set, the second ones can give the first ones without borrowing from a neighbour.
    bits = int.from_bytes(array("Q", [1 << 63]) * len(first), sys.byteorder)
    return ((_whole(second) | bits) - _whole(first)) & bits != bits


def _small(column: array[int]) -> bool:
    """Whether all numbers are below 2**56."""
    highest = 7 if sys.byteorder == "little" else 0
    return column.tobytes()[highest::8] == bytes(len(column))


def _whole(column: array[int]) -> int:
    return int.from_bytes(column, sys.byteorder)
