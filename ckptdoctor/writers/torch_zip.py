"""The zip that ``torch.save`` writes, laid out before a byte of it is there.

Records, their order, the alignment and the padding are those of ``caffe2/serialize/inline_container.cc``
and its miniz, so that readers which compute offsets (``torch.load`` can) find every storage.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckptdoctor.formats.checksum import crc32
from ckptdoctor.writers.pieces import Piece
from ckptdoctor.writers.stream import Place

ALIGNMENT = 64
ROOT = "archive"
U32 = 0xFFFFFFFF
DESCRIPTOR, UTF8 = 0x8, 0x800

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")


@dataclass(slots=True)
class Record:
    """One member: a piece, or ``data`` at hand."""

    name: str
    data: bytes = b""
    piece: Piece | None = None
    size: int = field(init=False)  # bytes of its content

    def __post_init__(self) -> None:
        self.size = self.piece.nbytes if self.piece is not None else len(self.data)


@dataclass(slots=True)
class Member:
    """A record at its place."""

    record: Record
    header: int  # where its local header begins
    start: int  # where its content begins

    @property
    def large(self) -> bool:
        """Whether it takes 64-bit fields."""
        return self.header >= U32 or self.record.size >= U32

    @property
    def end(self) -> int:
        """Where the next member begins."""
        descriptor = (24 if self.large else 16) if self.record.size else 0
        return self.start + self.record.size + descriptor

    @property
    def flags(self) -> int:
        """General purpose bits."""
        return UTF8 | (DESCRIPTOR if self.record.size else 0)

    def local(self) -> bytes:
        """The local header with its padding."""
        name = self.record.name.encode()
        extra = self._zip64()
        padding = self.start - self.header - LOCAL.size - len(name) - len(extra) - 4
        extra += b"FB" + struct.pack("<H", padding) + b"Z" * padding
        fields = (b"PK\x03\x04", 0, self.flags, 0, 0, 0, 0, 0, 0, len(name), len(extra))
        return LOCAL.pack(*fields) + name + extra

    def _zip64(self) -> bytes:
        if not self.large:
            return b""
        values = [self.record.size] * 2 if self.record.size >= U32 else []
        values += [self.header] if self.header >= U32 else []
        return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)

    def descriptor(self, crc: int) -> bytes:
        """What follows the content."""
        if not self.record.size:
            return b""
        form = "<4sLQQ" if self.large else "<4sLLL"
        return struct.pack(form, b"PK\x07\x08", crc, self.record.size, self.record.size)

    def central(self, crc: int) -> bytes:
        """Its entry in the central directory."""
        name, extra = self.record.name.encode(), self._zip64()
        size = min(self.record.size, U32)
        sizes = (crc, size, size, len(name), len(extra))
        fields = (0, 0, 0, 0, min(self.header, U32))
        return CENTRAL.pack(b"PK\x01\x02", 0, 0, self.flags, 0, 0, 0, *sizes, *fields) + name + extra


def records_of(
    pickle: bytes, storages: Mapping[str, Piece], root: str = f"{ROOT}/", *, computable: bool = True
) -> list[Record]:
    """The members of a torch file, in torch's order; the last one is finished when all sums are known.

    Where readers may not compute the places of storages (``computable``), the records that allow it are
    left out.
    """
    small = ((".format_version", b"1"), (".storage_alignment", b"64"))[: 2 * computable]
    records = [Record(f"{root}{name}", data) for name, data in (("data.pkl", pickle), *small)]
    records.append(Record(f"{root}byteorder", b"little"))
    records += [Record(f"{root}data/{name}", piece=piece) for name, piece in storages.items()]
    return [*records, Record(f"{root}version", b"3\n"), Record(f"{root}.data/serialization_id", b"0" * 40)]


def finished(members: Sequence[Member], sums: Sequence[int]) -> Member:
    """The last member: its length is known before, its digits are not. ``sums`` are those of the others."""
    last = members[-1]
    digits = serialization_id([m.record.name for m in members[:-1]], sums)
    return Member(Record(last.record.name, digits), last.header, last.start)


def laid_out(records: Sequence[Record], extra: int = 0) -> list[Member]:
    """Each record's place, one behind the other, contents aligned; the first moved by ``extra``."""
    members: list[Member] = []
    at = 0
    for record in records:
        large = record.size >= U32, at >= U32
        sizes = 4 + 16 * large[0] + 8 * large[1] if any(large) else 0
        start = at + LOCAL.size + len(record.name.encode()) + 4 + sizes
        front = 0 if members else extra
        members.append(Member(record, at, -(-start // ALIGNMENT) * ALIGNMENT + front))
        at = members[-1].end
    return members


def places(members: Sequence[Member]) -> list[Place]:
    """The members as bytes and pieces to write."""
    return [
        Place(m.header, m.local(), m.record.piece, m.descriptor)
        if m.record.piece is not None
        else Place(m.header, m.local() + m.record.data + m.descriptor(crc32(m.record.data)))
        for m in members
    ]


def directory(members: Sequence[Member], sums: Sequence[int]) -> bytes:
    """The central directory and the end records; ``sums`` are the checksums of pieces."""
    crcs = [
        s if m.record.piece is not None else crc32(m.record.data) for m, s in zip(members, sums, strict=True)
    ]
    entries = b"".join(m.central(crc) for m, crc in zip(members, crcs, strict=True))
    start, count = members[-1].end, len(members)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, len(entries), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(entries), 1)
    few = min(count, 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, min(len(entries), U32), min(start, U32), 0)
    return entries + end64 + locator + end


def serialization_id(names: Sequence[str], sums: Sequence[int]) -> bytes:
    """Forty digits: a hash of the record names and one of the checksums, as torch has them."""
    halves = ("\n".join(names).encode(), struct.pack(f"<{len(sums)}L", *sums))
    return "".join(
        f"{int.from_bytes(hashlib.sha256(h).digest()[:8], 'little'):020d}" for h in halves
    ).encode()
