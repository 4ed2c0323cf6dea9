"""Records of one length that follow each other, read by columns: slices with a step, not one at a time.

Columns of 64-bit numbers are added and compared as one long integer each, which is faster than one by one.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from operator import gt

PIECE = 1 << 12  # numbers that are added at once: they stay in the cache


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

    def leading(self, expected: bytes, at: int) -> int:
        """How many of the first records hold these bytes at this offset, one after the other."""
        columns = (self._data[at + i :: self._length] for i in range(len(expected)))
        return min(
            len(column) - len(column.lstrip(bytes([byte])))
            for column, byte in zip(columns, expected, strict=True)
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

    def hold(self, texts: list[str], at: int) -> bool:
        """Whether each record holds its text at this offset; the texts are ASCII and of one length."""
        size = len(texts[0])
        expected = "\0".join(texts).encode("utf-8", "replace")
        return len(expected) == (size + 1) * self.count - 1 and self._joined(size, at)[:-1] == expected

    def texts(self, size: int, at: int) -> list[str] | None:
        """The ASCII texts of ``size`` bytes at this offset; None where one is none, or holds a null byte."""
        joined = self._joined(size, at)
        if not joined.isascii() or joined.count(0) != self.count:
            return None
        return joined[:-1].decode("ascii").split("\0")

    def _joined(self, size: int, at: int) -> bytearray:
        """The bytes of each record, a null byte behind each."""
        joined = bytearray((size + 1) * self.count)
        for i in range(size):
            joined[i :: size + 1] = self._data[at + i :: self._length]
        return joined


def added(first: array[int], second: array[int]) -> array[int] | None:
    """The sums of two columns of one length; None where one could be too large for them."""
    made = array("Q")
    for a, b in zip(_pieces(first), _pieces(second), strict=True):
        if not (_small(a) and _small(b)):
            return None
        made.frombytes((_whole(a) + _whole(b)).to_bytes(8 * len(a), sys.byteorder))
    return made


def any_above(first: array[int], second: array[int]) -> bool:
    """Whether a number of the first column is larger than the one beside it."""
    return any(map(_above, _pieces(first), _pieces(second)))


def _above(first: array[int], second: array[int]) -> bool:
    if not (_small(first) and _small(second)):
        return any(map(gt, first, second))
    # With their highest bits set, the second ones can give the first ones without borrowing from a neighbour.
    bits = int.from_bytes(array("Q", [1 << 63]) * len(first), sys.byteorder)
    return ((_whole(second) | bits) - _whole(first)) & bits != bits


def _pieces(column: array[int]) -> Iterator[array[int]]:
    return (column[at : at + PIECE] for at in range(0, len(column), PIECE))


def _small(column: array[int]) -> bool:
    """Whether all numbers are below 2**56."""
    highest = 7 if sys.byteorder == "little" else 0
    return column.tobytes()[highest::8] == bytes(len(column))


def _whole(column: array[int]) -> int:
    return int.from_bytes(column, sys.byteorder)
