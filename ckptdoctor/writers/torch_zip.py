"""The zip that ``torch.save`` writes, laid out before a byte of it is there.

Records, their order, the alignment and the padding are those of ``caffe2/serialize/inline_container.cc``
and its miniz, so that readers which compute offsets (``torch.load`` can) find every storage.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ckptdoctor.formats.checksum import crc32
from ckptdoctor.writers.pieces import Piece
from ckptdoctor.writers.stream import Place

ALIGNMENT = 64
ROOT = "archive"
U32 = 0xFFFFFFFF
DESCRIPTOR, UTF8 = 0x8, 0x800

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<16s3L2H10xL")  # without a comment, attributes and a time
PLAIN = struct.pack("<4s6H", b"PK\x01\x02", 0, 0, UTF8, 0, 0, 0)
DESCRIBED = struct.pack("<4s6H", b"PK\x01\x02", 0, 0, UTF8 | DESCRIPTOR, 0, 0, 0)
SIZES, WIDE_SIZES = struct.Struct("<4sLLL"), struct.Struct("<4sLQQ")


@dataclass(slots=True)
class Member:
    """One file in the zip: a piece, or ``data`` at hand; and its place, once that is known."""

    name: bytes
    data: bytes = b""
    piece: Piece | None = None
    size: int = field(init=False)  # bytes of its content
    header: int = 0  # where its local header begins
    start: int = 0  # where its content begins
    end: int = 0  # where the next member begins
    large: bool = False  # whether it takes 64-bit fields

    def __post_init__(self) -> None:
        self.size = self.piece.nbytes if self.piece is not None else len(self.data)

    def put(self, at: int, extra: int = 0) -> int:
        """Its header goes to this place, its content ``extra`` bytes behind the next multiple of 64."""
        size = self.size
        start = at + LOCAL.size + len(self.name) + 4  # two numbers before the padding
        self.large = at >= U32 or size >= U32
        if self.large:
            start += 4 + 16 * (size >= U32) + 8 * (at >= U32)
        self.header, self.start = at, -(-start // ALIGNMENT) * ALIGNMENT + extra
        described = (24 if self.large else 16) if size else 0
        self.end = self.start + size + described
        return self.end

    @property
    def flags(self) -> int:
        """General purpose bits."""
        return UTF8 | (DESCRIPTOR if self.size else 0)

    def local(self) -> bytes:
        """The local header with its padding."""
        name, extra = self.name, self._zip64() if self.large else b""
        padding = self.start - self.header - LOCAL.size - 4 - len(name) - len(extra)
        front, behind = _around_name(self.size > 0, len(name), len(extra), padding)
        return front + name + extra + behind

    def _zip64(self) -> bytes:
        values = [self.size] * 2 if self.size >= U32 else []
        values += [self.header] if self.header >= U32 else []
        return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)

    def descriptor(self, crc: int) -> bytes:
        """What follows the content."""
        size = self.size
        if not size:
            return b""
        form = WIDE_SIZES if self.large else SIZES
        return form.pack(b"PK\x07\x08", crc, size, size)

    def central(self, crc: int) -> bytes:
        """Its entry in the central directory."""
        name, size, header, extra = self.name, self.size, self.header, b""
        if self.large:
            extra, size, header = self._zip64(), min(size, U32), min(header, U32)
        front = DESCRIBED if size else PLAIN
        return CENTRAL.pack(front, crc, size, size, len(name), len(extra), header) + name + extra


@lru_cache(1 << 10)
def _around_name(described: bool, name: int, extra: int, padding: int) -> tuple[bytes, bytes]:
    """A local header before its name, and behind its name and extra field; by their lengths."""
    fields = (b"PK\x03\x04", 0, UTF8 | DESCRIPTOR * described, 0, 0, 0, 0, 0, 0, name, extra + 4 + padding)
    return LOCAL.pack(*fields), b"FB" + struct.pack("<H", padding) + b"Z" * padding


def members_of(
    pickle: bytes, storages: Mapping[str, Piece], root: str = f"{ROOT}/", *, computable: bool = True
) -> list[Member]:
    """The members of a torch file, in torch's order; the last one is finished when all sums are known.

    Where readers may not compute the places of storages (``computable``), the records that allow it are
    left out.
    """
    front = root.encode()
    small = ((b".format_version", b"1"), (b".storage_alignment", b"64"))[: 2 * computable]
    before = ((b"data.pkl", pickle), *small, (b"byteorder", b"little"))
    members = [Member(front + name, data) for name, data in before]
    members += [Member(b"%sdata/%s" % (front, n.encode()), b"", piece) for n, piece in storages.items()]
    after = ((b"version", b"3\n"), (b".data/serialization_id", b"0" * 40))
    return members + [Member(front + name, data) for name, data in after]


def laid_out(members: list[Member], extra: int = 0) -> list[Member]:
    """The same, each at its place, one behind the other, contents aligned; the first moved by ``extra``."""
    at = members[0].put(0, extra)
    for member in members[1:]:
        at = member.put(at)
    return members


def finish(members: Sequence[Member], sums: Sequence[int]) -> None:
    """The last member: its length is known before, its digits are not. ``sums`` are those of the others."""
    members[-1].data = serialization_id([m.name for m in members[:-1]], sums)


def places(members: Sequence[Member]) -> list[Place]:
    """The members as bytes and pieces to write."""
    return [
        Place(m.header, m.local(), m.piece, m.descriptor)
        if m.piece is not None
        else Place(m.header, m.local() + m.data + m.descriptor(crc32(m.data)))
        for m in members
    ]


def directory(members: Sequence[Member], sums: Sequence[int]) -> bytes:
    """The central directory and the end records; ``sums`` are the checksums of pieces."""
    crcs = [s if m.piece is not None else crc32(m.data) for m, s in zip(members, sums, strict=True)]
    entries = b"".join(map(Member.central, members, crcs))
    start, count = members[-1].end, len(members)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, len(entries), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(entries), 1)
    few = min(count, 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, min(len(entries), U32), min(start, U32), 0)
    return entries + end64 + locator + end


def serialization_id(names: Sequence[bytes], sums: Sequence[int]) -> bytes:
    """Forty digits: a hash of the record names and one of the checksums, as torch has them."""
    halves = (b"\n".join(names), struct.pack(f"<{len(sums)}L", *sums))
    return "".join(
        f"{int.from_bytes(hashlib.sha256(h).digest()[:8], 'little'):020d}" for h in halves
    ).encode()
