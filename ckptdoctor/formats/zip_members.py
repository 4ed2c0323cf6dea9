"""The entries of a central directory, kept as columns: a file can have a million, and few are asked for.

torch names its storages by consecutive numbers, so most entries are as long as the one before. Those are
unpacked many at once; every entry that is not like its neighbours is read by itself.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import compress, islice, pairwise, repeat
from operator import add, gt
from typing import Any, NamedTuple

from ckptdoctor.formats.rows import Rows, added, any_above
from ckptdoctor.formats.words import show

CENTRAL = struct.Struct("<4s6H3L5H2L")
LENGTHS = struct.Struct("<3H")  # of name, extra field and comment, in an entry
MARK = b"PK\x01\x02"
LOCAL_SIZE = 30  # bytes of a local header without its name
U32 = 0xFFFFFFFF
_FULL = U32.to_bytes(4, "little")  # what a zip64 entry has, in the lower half of eight bytes
_FAR = struct.pack("<2H", 1, 8)  # how a zip64 field begins that has a place and no sizes
FEW = 16  # entries that are not worth to be unpacked together
MANY = 512  # entries whose columns are worth to be added as long integers
ASKED = 16  # names that are looked for one by one
MOST = 1 << 12  # unpacked together, so that little memory is needed

Bad = Callable[[str], Exception]


class Member(NamedTuple):
    """One file inside the zip. ``header`` is the offset of its local header."""

    name: str
    header: int
    size: int
    packed: int
    method: int
    crc: int
    flags: int


class Members(Mapping[str, Member]):
    """All members by name, in the order of the directory; ``bad`` makes the error for a damaged one."""

    def __init__(self, data: bytes, count: int, bad: Bad) -> None:
        self.names: list[str] = []
        self.header, self.size, self.packed, self.method, self.crc, self.flags, self.head = (
            array("Q", bytes(8 * count)) for _ in range(7)
        )  # head: bytes of its local header without the extra field
        self.ordered = False  # in the order of the file, known once `overlap` looked
        self._bad = bad
        self._asked = 0
        self._read(data, count)
        if len(set(self.names)) != count:
            name = next(n for i, n in enumerate(self.names) if self.index[n] != i)
            raise bad(f"it has two members named {show(name)!r}")

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each by name."""
        return dict(zip(self.names, range(len(self.names)), strict=True))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return self._number(name) is not None

    def __getitem__(self, name: str) -> Member:
        number = self._number(name)
        if number is None:
            raise KeyError(name)
        return self.at(number)

    def _number(self, name: Any) -> int | None:
        """The number of the member of that name. A table of all is made once many were asked for."""
        self._asked += 1
        if self._asked > ASKED:
            return self.index.get(name)
        try:
            return self.names.index(name)
        except ValueError:
            return None

    def at(self, i: int) -> Member:
        """The member with that number."""
        return Member(
            self.names[i],
            self.header[i],
            self.size[i],
            self.packed[i],
            self.method[i],
            self.crc[i],
            self.flags[i],
        )

    def numbers(self, folder: str, keys: list[str]) -> Sequence[int] | None:
        """The number of each member of a folder (with its slash); None where one is missing."""
        first = self._number(folder + keys[0]) if keys else None
        if first is None:
            return None
        parts = range(0, len(keys), MOST)
        if all(self._named(first + at, folder, keys[at : at + MOST]) for at in parts):  # as torch writes them
            return range(first, first + len(keys))
        found = [self.index.get(folder + key, -1) for key in keys]
        return found if -1 not in found else None

    def _named(self, first: int, folder: str, keys: list[str]) -> bool:
        return self.names[first : first + len(keys)] == [folder + key for key in keys]

    def named(self, numbers: Sequence[int]) -> list[str]:
        """The names with these numbers."""
        if isinstance(numbers, range):
            return self.names[numbers.start : numbers.stop]
        return list(map(self.names.__getitem__, numbers))

    @staticmethod
    def pick(column: array[int], numbers: Sequence[int]) -> array[int]:
        """The entries with these numbers."""
        if isinstance(numbers, range):
            return column[numbers.start : numbers.stop]
        return array("Q", map(column.__getitem__, numbers))

    def has_under(self, folder: str) -> bool:
        """Whether a name begins so."""
        known = folder in "\0".join(self.names)  # seldom, so all are asked at once first
        return known and any(map(str.startswith, self.names, repeat(folder)))

    def ending(self, tail: str) -> list[str]:
        """The names that end so."""
        return list(compress(self.names, map(str.endswith, self.names, repeat(tail))))

    def overlap(self) -> tuple[Member, Member | None]:
        """The member that ends last, or two of which one lies over the other, in the order of the file."""
        if len(self.names) > MANY:
            sums = added(self.header, self.packed)
            found = added(sums, self.head) if sums is not None else None
            if found is not None and not any_above(found[:-1], self.header[1:]):
                self.ordered = True
                return self.at(len(found) - 1), None
        ends = list(map(add, map(add, self.header, self.head), self.packed))
        if not any(map(gt, ends, islice(self.header, 1, None))):
            self.ordered = True
            return self.at(len(ends) - 1), None
        order = sorted(range(len(ends)), key=self.header.__getitem__)
        for i, following in pairwise(order):
            if ends[i] > self.header[following]:
                return self.at(i), self.at(following)
        return self.at(order[-1]), None

    def _read(self, data: bytes, count: int) -> None:
        at = alone = 0
        while (left := count - len(self.names)) > 0:
            taken, end = (1, at) if alone else self._alike(data, at, min(left, MOST))
            if end > at:
                at = end
            else:
                alone = max(alone, taken) - 1
                at = self._one(data, at)
        if at != len(data):
            raise self._bad("its central directory is longer than its entries")

    def _alike(self, data: bytes, at: int, count: int) -> tuple[int, int]:
        """How many of the next entries are alike, and where they end; ``at`` if each is to be read alone."""
        if count < FEW or at + CENTRAL.size > len(data):
            return 1, at
        length = CENTRAL.size + sum(LENGTHS.unpack_from(data, at + 28))
        # A mark where the last of a few would begin: mostly there are as many entries like the first.
        last = at + (FEW - 1) * length
        if data[last : last + 4] != MARK:
            return 1, at
        rows = Rows(data[at : at + count * length], length)
        count = min(rows.count, rows.leading(MARK, 0), rows.leading(data[at + 28 : at + 34], 28))
        end = at + count * length
        name_length, extra_length, _ = LENGTHS.unpack_from(data, at + 28)
        if count < FEW:
            return 1, at
        return count, end if self._plain(Rows(data[at:end], length), name_length, extra_length) else at

    def _plain(self, rows: Rows, length: int, extra: int) -> bool:
        """Add the entries, if they need no other alphabet, and zip64 for their places beyond 4 GB only."""
        packed, sizes, headers = (rows.numbers(4, at) for at in (20, 24, 42))
        text = rows.texts(length, CENTRAL.size)
        behind = CENTRAL.size + length
        if extra == len(_FAR) + 8 and rows.all(b"\xff" * 4, 42) and rows.all(_FAR, behind):
            headers = rows.numbers(8, behind + len(_FAR))
        elif _FULL in headers.tobytes():
            return False
        if text is None or any(_FULL in column.tobytes() for column in (packed, sizes)):
            return False
        more = rows.numbers(2, 10), rows.numbers(4, 16), rows.numbers(2, 8)
        found = headers, sizes, packed, *more, array("Q", [LOCAL_SIZE + length]) * rows.count
        first = len(self.names)
        for column, values in zip(self._columns(), found, strict=True):
            column[first : first + rows.count] = values
        self.names += text
        return True

    def _columns(self) -> tuple[array[int], ...]:
        return self.header, self.size, self.packed, self.method, self.crc, self.flags, self.head

    def _one(self, data: bytes, at: int) -> int:
        """Add one entry; where it ends."""
        if at + CENTRAL.size > len(data):
            raise self._bad("its central directory ends in the middle of an entry")
        (mark, _, _, flags, method, _, _, crc, packed, size, name_n, extra_n, comment_n, _, _, _, header) = (
            CENTRAL.unpack_from(data, at)
        )
        name_at = at + CENTRAL.size
        end: int = name_at + name_n + extra_n + comment_n
        if mark != MARK or end > len(data):
            raise self._bad("an entry of its central directory is damaged")
        raw = data[name_at : name_at + name_n]
        try:
            name = raw.decode() if flags & 0x800 or raw.isascii() else raw.decode("cp437")
        except UnicodeDecodeError:
            raise self._bad("a member's name is not UTF-8") from None
        if U32 in (size, packed, header):
            extra = data[name_at + name_n : name_at + name_n + extra_n]
            size, packed, header = self._zip64_extra(extra, size, packed, header)
        i = len(self.names)
        self.header[i], self.size[i], self.packed[i], self.method[i] = header, size, packed, method
        self.crc[i], self.flags[i], self.head[i] = crc, flags, LOCAL_SIZE + len(name)
        self.names.append(name)
        return end

    def _zip64_extra(self, extra: bytes, size: int, packed: int, header: int) -> list[int]:
        """The 64-bit values of those fields that are all ones, in their fixed order."""
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1 and at + 4 + length <= len(extra):
                words = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
                fields = [size, packed, header]
                if fields.count(U32) <= len(words):
                    return [words.pop(0) if f == U32 else f for f in fields]
            at += 4 + length
        raise self._bad("a zip64 entry of its central directory is damaged")
