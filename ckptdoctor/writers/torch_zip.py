"""The zip that ``torch.save`` writes, laid out before a byte of it is there.

Records, their order, the alignment and the padding are those of ``caffe2/serialize/inline_container.cc``
and its miniz, so that readers which compute offsets (``torch.load`` can) find every storage. A file can have
a hundred thousand members, so what is known of them is kept in columns.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, repeat

from ckptdoctor.formats.checksum import crc32
from ckptdoctor.writers.pieces import Piece

ALIGNMENT = 64
ROOT = "archive"
U32 = 0xFFFFFFFF
DESCRIPTOR, UTF8 = 0x8, 0x800

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<16s3L2H10xL")  # without a comment, attributes and a time
PLAIN = struct.pack("<4s6H", b"PK\x01\x02", 0, 0, UTF8, 0, 0, 0)
DESCRIBED = struct.pack("<4s6H", b"PK\x01\x02", 0, 0, UTF8 | DESCRIPTOR, 0, 0, 0)
SIZES, WIDE_SIZES, SIZES_MARK = struct.Struct("<4sLLL"), struct.Struct("<4sLQQ"), b"PK\x07\x08"


class Layout:
    """Members of a zip, one behind the other, contents aligned; the first content is moved by ``extra``.

    ``headers`` and ``starts`` say where each local header and each content begin, ``end`` is behind the last.
    """

    def __init__(self, names: Sequence[bytes], sizes: Sequence[int], extra: int = 0) -> None:
        self.names, self.sizes = names, sizes
        self.headers, self.starts = array("Q"), array("Q")
        at = 0
        for name, size in zip(names, sizes, strict=True):
            start = at + LOCAL.size + len(name) + 4  # two numbers before the padding
            large = at >= U32 or size >= U32
            if large:
                start += len(_zip64(size, at))
            start = -(-start // ALIGNMENT) * ALIGNMENT + extra
            self.headers.append(at)
            self.starts.append(start)
            at, extra = start + size + ((24 if large else 16) if size else 0), 0
        self.end = at
        self._large = at > U32  # whether any member may take 64-bit fields

    def flags(self, i: int) -> int:
        """General purpose bits."""
        return UTF8 | (DESCRIPTOR if self.sizes[i] else 0)

    def heads(self, first: int, last: int) -> list[bytes]:
        """The local headers of these members, with their padding."""
        part = slice(first, last)
        rows = zip(self.names[part], self.sizes[part], self.headers[part], self.starts[part], strict=True)
        if self._large:
            return [_local(*row) for row in rows]
        made = []
        for name, size, header, start in rows:
            front, behind = _around_name(size > 0, len(name), 0, start - header)
            made.append(front + name + behind)
        return made

    def tails(self, first: int, sums: Sequence[int]) -> list[bytes]:
        """What follows the contents, which have these checksums, of the members from the ``first`` on."""
        sizes = self.sizes[first : first + len(sums)]
        if not self._large and all(sizes):
            return list(map(SIZES.pack, repeat(SIZES_MARK), sums, sizes, sizes))
        rows = zip(sums, sizes, self.headers[first:], strict=False)
        return [_descriptor(crc, size, size >= U32 or at >= U32) for crc, size, at in rows]

    def directory(self, sums: Sequence[int]) -> bytes:
        """The central directory and the end records; ``sums`` are the checksums of all."""
        rows = zip(self.names, self.sizes, self.headers, sums, strict=True)
        if self._large:
            entries = b"".join([_central(*row) for row in rows])
        else:
            kinds = [DESCRIBED if size else PLAIN for size in self.sizes]
            lengths = map(len, self.names)
            packed = map(CENTRAL.pack, kinds, sums, self.sizes, self.sizes, lengths, repeat(0), self.headers)
            entries = b"".join(chain.from_iterable(zip(packed, self.names, strict=True)))
        return entries + _end_records(len(self.names), len(entries), self.end)


def _local(name: bytes, size: int, header: int, start: int) -> bytes:
    extra = _zip64(size, header)
    front, behind = _around_name(size > 0, len(name), len(extra), start - header)
    return front + name + extra + behind


@lru_cache(1 << 10)
def _around_name(described: bool, name: int, extra: int, whole: int) -> tuple[bytes, bytes]:
    """A local header before its name, and behind its name and extra field; by their lengths."""
    padding = whole - LOCAL.size - 4 - name - extra
    fields = (b"PK\x03\x04", 0, UTF8 | DESCRIPTOR * described, 0, 0, 0, 0, 0, 0, name, extra + 4 + padding)
    return LOCAL.pack(*fields), b"FB" + struct.pack("<H", padding) + b"Z" * padding


def _zip64(size: int, header: int) -> bytes:
    """The extra field of a member that takes 64-bit numbers, empty for others."""
    values = [size] * 2 if size >= U32 else []
    values += [header] if header >= U32 else []
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _descriptor(crc: int, size: int, large: bool) -> bytes:
    return (WIDE_SIZES if large else SIZES).pack(SIZES_MARK, crc, size, size) if size else b""


def _central(name: bytes, size: int, header: int, crc: int) -> bytes:
    """An entry of the central directory."""
    extra, kind = _zip64(size, header), DESCRIBED if size else PLAIN
    size, header = min(size, U32), min(header, U32)
    return CENTRAL.pack(kind, crc, size, size, len(name), len(extra), header) + name + extra


def _end_records(count: int, size: int, start: int) -> bytes:
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size, 1)
    few = min(count, 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, min(size, U32), min(start, U32), 0)
    return end64 + locator + end


class TorchZip:
    """The members of a torch file, in torch's order: a few small ones, the storages, two small ones.

    Where readers may not compute the places of storages (``computable``), the records that allow it are
    left out. ``extra`` is that of the layout.
    """

    def __init__(
        self,
        pickle: bytes,
        storages: Mapping[str, Piece],
        root: str = f"{ROOT}/",
        *,
        computable: bool = True,
        extra: int = 0,
    ) -> None:
        small = ((b".format_version", b"1"), (b".storage_alignment", b"64"))[: 2 * computable]
        self._front = ((b"data.pkl", pickle), *small, (b"byteorder", b"little"))
        # The length of the last one is known before, its digits are not.
        self._behind = ((b"version", b"3\n"), (b".data/serialization_id", b"0" * 40))
        self.pieces = list(storages.values())
        self.first = len(self._front)  # the number of the first storage
        self.last = self.first + len(self.pieces)  # and of the first member behind them
        folder = root.encode()
        names = [folder + name for name, _ in self._front]
        names += map((folder.replace(b"%", b"%%") + b"data/%b").__mod__, map(str.encode, storages))
        names += [folder + name for name, _ in self._behind]
        sizes = [len(data) for _, data in self._front]
        sizes += [piece.nbytes for piece in self.pieces]
        sizes += [len(data) for _, data in self._behind]
        self.layout = Layout(names, sizes, extra)

    def front(self) -> bytes:
        """The file up to the header of the first storage."""
        return self._whole(0, [data for _, data in self._front])

    def heads(self, first: int, last: int) -> list[bytes]:
        """What comes before these storages."""
        return self.layout.heads(self.first + first, self.first + last)

    def tails(self, first: int, sums: Sequence[int]) -> list[bytes]:
        """What follows storages that have these checksums, from the ``first`` on."""
        return self.layout.tails(self.first + first, sums)

    def behind(self, sums: Sequence[int]) -> bytes:
        """The file from behind the last storage on; ``sums`` are the checksums of the storages."""
        version = self._behind[0][1]
        named = [*repeat(0, self.first), *sums, 0]
        last = serialization_id(self.layout.names[:-1], named)
        front = [crc32(data) for _, data in self._front]
        known = [*front, *sums, crc32(version), crc32(last)]
        return self._whole(self.last, [version, last]) + self.layout.directory(known)

    def _whole(self, first: int, contents: Sequence[bytes]) -> bytes:
        """Members whose contents are at hand, from this one on."""
        heads = self.layout.heads(first, first + len(contents))
        tails = self.layout.tails(first, list(map(crc32, contents)))
        return b"".join(chain.from_iterable(zip(heads, contents, tails, strict=True)))


def serialization_id(names: Sequence[bytes], sums: Sequence[int]) -> bytes:
    """Forty digits: a hash of the record names and one of the checksums, as torch has them."""
    halves = (b"\n".join(names), struct.pack(f"<{len(sums)}L", *sums))
    return "".join(
        f"{int.from_bytes(hashlib.sha256(h).digest()[:8], 'little'):020d}" for h in halves
    ).encode()
