"""Tensor records as ``torch.save`` writes them, as regular expressions over a pickle's opcodes.

What they match leaves one object of no weight on the unpickler's stack and only small tuples in its memo.
A text is as many printable bytes as fit, since expressions that spell lengths out take long to compile. So
whoever uses a match has to compare each text with the length before it: an expression that took the wrong
number of bytes for a text would see other opcodes than the unpickler does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import repeat
from typing import NamedTuple

Match = Callable[[bytes, int], "re.Match[bytes] | None"]
FindAll = Callable[[bytes, int], list[tuple[bytes, ...]]]
Columns = Sequence[Sequence[bytes]]

_TEXT = rb"[ -~]{1,255}"


class Rows(NamedTuple):
    """Takes runs of keys with their tensors apart: ``match`` is for one row, ``find`` for many."""

    match: Match
    find: FindAll

    def begin(self, data: bytes, at: int) -> bool:
        """Whether a row is there."""
        found = self.match(data, at)
        return found is not None and found[1] is not None

    def take(self, data: bytes, at: int) -> tuple[Columns, int] | None:
        """The rows from there on, by columns, and where they end; None where the length of a text lies."""
        rows = self.find(data, at)
        end = len(data) - len(rows[-1][-1])
        if rows[-1][-1]:
            rows.pop()
        columns = list(zip(*rows, strict=True))
        return (columns, end) if _fitting(columns) else None


def _fitting(columns: Columns) -> bool:
    """Whether each text of each row is as long as the byte before it says."""
    pairs = ((columns[0], columns[1]), (columns[3], columns[4]))
    return all(b"".join(lengths) == bytes(map(len, texts)) for lengths, texts in pairs)


class Run:
    """A run of keys, each with its tensor, as rows of what differs; ``start`` and ``end`` are in the file."""

    def __init__(self, start: int, end: int, columns: Columns) -> None:
        self.start, self.end = start, end
        _, keys, functions, _, storages, *rest, _ = columns
        self.keys, self.storages = _texts(keys), _texts(storages)
        parts = [functions, *rest]
        # Most columns hold the same everywhere; the others tell the rows apart.
        unlike = [column for column in parts if column.count(column[0]) < len(column)]
        known: dict[tuple[bytes, ...], int] = {}
        rows = zip(*unlike, strict=True) if unlike else repeat((), len(keys))
        self.first = list(map(known.setdefault, rows, range(len(keys))))
        # Number of its first row -> all but key and storage.
        self.kinds = {i: tuple(column[i] for column in parts) for i in known.values()}


def _texts(column: Sequence[bytes]) -> list[str]:
    """Printable bytes as texts."""
    return b"\n".join(column).decode("ascii").split("\n")


@cache
def rows(bound: int, puts: bool) -> Rows:
    """Keys, each with its tensor; all that can be is put into the memo, or nothing.

    The memo is numbered by LONG_BINPUT from 256 on, and what is taken from it with BINGET is below that: such
    a row changes nothing that it uses. Each is (length, key, function and type, length, storage key, location
    and numel, offset and size, stride, flag and hooks, ""). Behind the last comes a row with a rest alone.
    """
    found = re.compile(_row(bound, puts) + b"|(.+)", re.S)
    return Rows(found.match, found.findall)


def _row(bound: int, puts: bool) -> bytes:
    # From 256 on and below the bound; that 256 of 65,536 indices are left out makes it a third faster.
    put = rb"r.[^\0][\0-\x%02x][\0-\x%02x]" % (min(bound >> 16, 0xFF), min(bound >> 24, 0xFF))
    size = rb"(?:I(?:\x85|I(?:\x86|I\x87))|\)|\(I{0,12}t)"
    row = rb"X(T)P(G\(\(GG)X(T)P(GI)tPQ(IS)E(S)E([\x88\x89]G)\)RPtPRP".replace(b"S", size)
    put, unless_empty = (put, b"(?:" + put + b")?+") if puts else (b"", b"")
    for letter, spelled in ((b"I", rb"(?:K.|M..|J.{4})"), (b"G", b"h."), (b"P", put), (b"E", unless_empty)):
        row = row.replace(letter, spelled)
    return row.replace(b"(T)", rb"([^\0])\0\0\0(" + _TEXT + b")")
