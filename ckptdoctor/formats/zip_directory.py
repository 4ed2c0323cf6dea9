"""The central directory of a zip file, checked, without `zipfile` (which is slow for many members).

Layout: PKWARE APPNOTE.TXT 6.3.9, sections 4.3.7 (local header), 4.3.12 (central directory),
4.3.14 to 4.3.16 (zip64 and plain end records), 4.5.3 (zip64 extra field).
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Sequence

from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats.rows import Rows, added, any_above
from ckptdoctor.formats.source import FileSource, corrupt
from ckptdoctor.formats.words import show
from ckptdoctor.formats.zip_members import CENTRAL, U32, Member, Members

STORED, DEFLATED = 0, 8
LOCAL = struct.Struct("<4s5H3L2H")
LOCAL_PARTS = struct.Struct("<4s4xH16x2H")  # the mark, the method and the two lengths of it
END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
MOST_COMMENT = 0xFFFF
CHUNK = 1 << 20
WINDOW = 1 << 15  # of headers of small members that are read at once
MANY, NEAR = 1 << 10, 1 << 10  # headers that are read at once, and bytes from one to the next on average
INFLATE_RATIO = 200  # of a member that is read whole; text and pickles pack 3 to 30 times


class Directory:
    """All members of one zip file, by name; raises CorruptCheckpointError for any contradiction."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self._near, self._near_at = b"", 0
        self.start, count, size = self._end_record()
        if count * CENTRAL.size > size:
            raise self._bad(f"its central directory has no room for {count} entries")
        self.members = Members(source.exactly(self.start, size, "the central directory"), count, self._bad)
        self._check_overlap()

    def _bad(self, what: str) -> CorruptCheckpointError:
        return corrupt(self.source.path, what)

    def _end_record(self) -> tuple[int, int, int]:
        """Offset, entries and bytes of the central directory."""
        tail_at, tail, at = self._end_mark()
        _, disk, first_disk, here, count, size, start, _ = END.unpack_from(tail, at)
        end = tail_at + at
        if U32 in (size, start) or count == 0xFFFF or self._locator(end) is not None:
            disk, first_disk, here, count, size, start, end = self._end64(end, (count, size, start))
        if disk or first_disk or here != count:
            raise self._bad("a zip file in several volumes, which no checkpoint is")
        if start + size != end:
            raise self._bad(f"its central directory should end at byte {end}, not at {start + size}")
        return start, count, size

    def _end_mark(self) -> tuple[int, bytes, int]:
        """The end of the file, where it begins, and where the end record is in it."""
        file_size = self.source.size
        for most in (END.size, END.size + MOST_COMMENT):  # mostly there is no comment
            tail_at = max(0, file_size - most)
            tail = self.source.exactly(tail_at, file_size - tail_at, "the end of the zip")
            at = tail.rfind(b"PK\x05\x06")
            while at >= 0 and (len(tail) - at < END.size or self._comment_end(tail, at) != len(tail)):
                at = tail.rfind(b"PK\x05\x06", 0, at)
            if at >= 0:
                return tail_at, tail, at
        raise self._bad(
            "a zip file whose end is missing (no central directory): truncated, or still being written"
        )

    def _comment_end(self, tail: bytes, at: int) -> int:
        length: int = END.unpack_from(tail, at)[7]
        return at + END.size + length

    def _locator(self, end: int) -> int | None:
        """Offset of the zip64 end record, if there is one."""
        data = self.source.some(end - LOCATOR.size, LOCATOR.size) if end >= LOCATOR.size else b""
        if data[:4] != b"PK\x06\x07":
            return None
        offset: int = LOCATOR.unpack(data)[2]
        return offset

    def _end64(self, end: int, plain: tuple[int, int, int]) -> tuple[int, ...]:
        at = self._locator(end)
        if at is None:
            if U32 in plain[1:]:
                raise self._bad("its zip64 end record is missing")
            return 0, 0, plain[0], *plain, end  # exactly 65,535 entries and no zip64
        record = self.source.exactly(at, END64.size, "the zip64 end record")
        mark, length, _, _, disk, first_disk, here, count, size, start = END64.unpack(record)
        if mark != b"PK\x06\x06" or at + 12 + length != end - LOCATOR.size:
            raise self._bad("its zip64 end record is damaged")
        return disk, first_disk, here, count, size, start, at

    def _check_overlap(self) -> None:
        """Members one after the other, none over another, none behind the directory."""
        if not self.members:
            return
        last, over = self.members.overlap()
        if over is not None:
            raise self._bad(f"members {show(last.name)!r} and {show(over.name)!r} overlap")
        if last.header + LOCAL.size + len(last.name) + last.packed > self.start:
            raise self._ends_outside(last)

    def _ends_outside(self, member: Member) -> CorruptCheckpointError:
        return self._bad(f"member {show(member.name)!r} ends outside the file (truncated?)")

    def data_offset(self, member: Member) -> int:
        """Where the member's bytes begin, by its local header, which must agree with the directory."""
        length = LOCAL.size + len(member.name)
        raw = self._header(member.header, length)
        if len(raw) < length:
            raise self._ends_outside(member)
        mark, method, name_n, extra_n = LOCAL_PARTS.unpack_from(raw)
        if mark != b"PK\x03\x04" or method != member.method:
            raise self._bad(f"the header of member {show(member.name)!r} is damaged")
        if name_n == len(member.name) and raw[LOCAL.size :] != member.name.encode("utf-8", "replace"):
            raise self._bad(f"member {show(member.name)!r} has another name in its own header")
        offset: int = member.header + LOCAL.size + name_n + extra_n
        if offset + member.packed > self.start:
            raise self._ends_outside(member)
        return offset

    def data_offsets(self, numbers: Sequence[int]) -> array[int]:
        """`data_offset` of the members with these numbers; many headers are read and compared at once."""
        found = array("Q")
        for at in range(0, len(numbers), MANY):
            part = numbers[at : at + MANY]
            found += self._offsets(part) or array("Q", (self.data_offset(self.members.at(i)) for i in part))
        return found

    def _offsets(self, numbers: Sequence[int]) -> array[int] | None:
        """The same by columns; None where each is to be looked at alone."""
        members = self.members
        headers, heads = members.pick(members.header, numbers), members.pick(members.head, numbers)
        rows = self._headers(headers, heads, members.named(numbers))
        if (
            rows is None
            or rows.count != len(numbers)
            or not rows.all(b"PK\x03\x04", 0)
            or rows.numbers(2, 8) != members.pick(members.method, numbers)
            or added(rows.numbers(2, 26), array("Q", [LOCAL.size]) * len(heads)) != heads
        ):
            return None
        begins = added(headers, heads)
        offsets = added(begins, rows.numbers(2, 28)) if begins is not None else None
        ends = added(offsets, members.pick(members.packed, numbers)) if offsets is not None else None
        if ends is None or any_above(ends, array("Q", [self.start]) * len(ends)):
            return None
        return offsets

    def _headers(self, places: array[int], lengths: array[int], names: list[str]) -> Rows | None:
        """The headers, each of its length; None where one has another name."""
        first, last, length = min(places), max(places), lengths[0]
        alike = lengths == lengths[:1] * len(lengths)
        if last - first > NEAR * len(places):
            raws = list(self.source.each(places, lengths))
        else:
            block = self.source.some(first, last + max(lengths) - first)
            step = places[1] - first if len(places) > 1 else 0
            if alike and step >= length and places == array("Q", range(first, last + 1, step)):
                return _named(Rows(block + bytes(step - length), step), names)  # members of one size
            raws = [block[at - first : at - first + n] for at, n in zip(places, lengths, strict=True)]
        if alike:
            return _named(Rows(b"".join(raws), length), names)
        # Each name has its length, so that all of them are right together.
        named = b"".join([raw[LOCAL.size :] for raw in raws]) == "".join(names).encode("utf-8", "replace")
        right = named and list(map(len, raws)) == lengths.tolist()
        return Rows(b"".join([raw[: LOCAL.size] for raw in raws]), LOCAL.size) if right else None

    def _header(self, at: int, length: int) -> bytes:
        """Those bytes; many at once where small members follow each other."""
        near = at - self._near_at
        if not 0 <= near <= len(self._near) - length:
            self._near = self.source.some(at, WINDOW if 0 <= near < 2 * WINDOW else length)
            self._near_at, near = at, 0
        return self._near[near : near + length]

    def check_readable(self, member: Member) -> None:
        """Raise for encryption and for compressions other than deflate; sizes of stored ones must agree."""
        if member.flags & 1:
            raise self._bad(f"member {show(member.name)!r} is encrypted; unpack and repack the file")
        if member.method not in (STORED, DEFLATED):
            raise self._bad(f"member {show(member.name)!r} is compressed by method {member.method}")
        if member.method == STORED and member.packed != member.size:
            raise self._bad(f"member {show(member.name)!r} has two sizes, {member.packed} and {member.size}")

    def read(self, member: Member, limit: int) -> bytes:
        """All bytes of a small member (a version, a pickle), never more than `limit`."""
        self.check_readable(member)
        if member.size > limit:
            raise self._bad(f"member {show(member.name)!r} is too large ({member.size} bytes)")
        raw = self.source.exactly(self.data_offset(member), member.packed, f"member {show(member.name)!r}")
        if member.method == STORED:
            self._check_crc(member, zlib.crc32(raw))
            return raw
        if member.size > 2**20 + INFLATE_RATIO * member.packed:
            raise self._bad(f"member {show(member.name)!r} unpacks to {member.size} bytes, a zip bomb")
        data = inflate(raw, member.size)
        if data is None:
            raise self._bad(f"the compressed bytes of member {show(member.name)!r} are damaged")
        self._check_crc(member, zlib.crc32(data))
        return data

    def checked_offset(self, member: Member) -> int:
        """Where a stored member begins, once all of it was read and fits its checksum."""
        offset = self.data_offset(member)
        crc = 0
        for at in range(offset, offset + member.size, CHUNK):
            crc = zlib.crc32(self.source.some(at, min(CHUNK, offset + member.size - at)), crc)
        self._check_crc(member, crc)
        return offset

    def _check_crc(self, member: Member, crc: int) -> None:
        if crc != member.crc and member.crc:  # torch can leave checksums out; they are 0 then
            raise self._bad(f"member {show(member.name)!r} changed after saving (its CRC-32 does not fit)")


def _named(rows: Rows, names: list[str]) -> Rows | None:
    """The local headers, if they have these names, which are of one length."""
    return rows if rows.count == len(names) and rows.hold(names, LOCAL.size) else None


def inflate(raw: bytes, size: int) -> bytes | None:
    """Raw deflate to exactly `size` bytes; None if that is not what they are."""
    stream = zlib.decompressobj(-15)
    try:
        data = stream.decompress(raw, size + 1)
    except zlib.error:
        return None
    return data if len(data) == size and stream.eof else None
