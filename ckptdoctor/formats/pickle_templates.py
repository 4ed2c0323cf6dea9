"""Tensor records of a pickle that are like one before, in all but their numbers and texts, skipped at once.

A record whose opcodes were looked at becomes a template: the bits that count in it, as one large number. So
the next record like it takes one comparison, and no regular expression has to be compiled for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ckptdoctor.formats.pickle_opcodes import FIXED, GET, GETS, SIZED, TEXTS

LIGHT = 2  # the weight of what a record may take from the memo: texts and globals
KEY = 8  # bytes at the end of a key that tell which tensor it is
MOST = 64  # templates that are tried for one record
LONGEST, LONGEST_TEXT = 64, 255  # opcodes of a record, bytes of a text in it

_CALL, _MEMOIZE, _SHORT_PUT, _LONG_GET = ord("R"), 0x94, ord("q"), ord("j")
_PUTS = b"qr\x94"
_EXACT = frozenset(b"hjqrX\x8c")  # opcodes whose argument counts
# Bytes behind each opcode that a record may have, and the bits that count in it and them.
_SHAPES = {
    op: (size, b"\xff" + (b"\xff" if op in _EXACT else b"\0") * size)
    for op in b"hjqrKMJ(t\x85\x86\x87Q)N\x88\x89R\x94X\x8c"
    for size in (FIXED.get(op, SIZED.get(op, 0)),)
}
_NONE = (0, b"")
_KEY_ENDS = {_SHORT_PUT: 2, GET: 0}  # bytes behind the key, by the one two before the record
# As letters: G takes from the memo, P puts into it, I is a number, X a text, B a truth value.
_LETTERS = bytes.maketrans(b"hjqr\x94KMJX\x8c\x88\x89\x85\x86\x87", b"GGPPPIIIXXBB123")
# GLOBAL by GET, MARK, MARK, "storage", type, key, location, numel, TUPLE, BINPERSID, offset; size and stride;
# requires_grad, hooks, perhaps metadata.
_HEADS = {b"G((GG" + key + b"I" + no for key in (b"GG", b"GX", b"XG", b"XX") for no in (b"", b"N")}
_SIZE = (b"I1", b"II2", b"III3", b")", *(b"(" + b"I" * n + b"t" for n in range(13)))
_SIZES = {size + stride for size in _SIZE for stride in _SIZE}
_TAILS = {b"G)RtR", b"G)RGtR"}


class Template(NamedTuple):
    """The opcodes of one record, with the memo's next index taken out: ``value + next * step`` is left."""

    length: int
    mask: int
    value: int
    step: int
    end: int | None  # memo indices stay below; None: below what the scan allows
    puts: int
    memoized: int
    far: bool  # it takes something from far up in the memo


class Templates:
    """Those of one pickle."""

    def __init__(self) -> None:
        self._known: list[Template] = []
        self._likely: dict[bytes, Template] = {}  # by the end of the key in front of the record

    def forget(self) -> None:
        """What they took from the memo is something else now."""
        self._known.clear()
        self._likely.clear()

    def fitting(
        self, data: bytes, at: int, base: int, bound: int, memo: Mapping[int, int]
    ) -> Template | None:
        """The template of the record at this place, a new one if need be; None where there is no record.

        ``base`` is the next index of the memo where BINPUT numbers it, ``memo`` the weights of what it has.
        """
        end = _KEY_ENDS.get(data[at - 2], 5)
        named = data[at - end - KEY : at - end]
        likely = self._likely.get(named)
        if likely is not None and _fits(likely, data, at, base, bound):
            return likely
        found = next((t for t in self._known if _fits(t, data, at, base, bound)), None)
        if found is None and len(self._known) < MOST:
            found = _template(data, at, base, memo)
            if found is None or not _fits(found, data, at, base, bound):
                return None
            self._known.append(found)
        if found is not None:
            self._likely[named] = found
            self._known.remove(found)  # in front, since the next one is often like it
            self._known.insert(0, found)
        return found


def _fits(template: Template, data: bytes, at: int, base: int, bound: int) -> bool:
    length, mask, value, step, end, puts, _, _ = template
    return (
        int.from_bytes(data[at : at + length], "little") & mask == value + base * step
        # An index that needs one more byte would run into what is behind it.
        and base + puts <= (bound if end is None else end)
        and at + length <= len(data)
    )


def _template(data: bytes, at: int, base: int, memo: Mapping[int, int]) -> Template | None:
    """The template of the record at this place; None where there is none, or it is not as simple as most."""
    ops, masks = bytearray(), []
    step = puts = calls = 0
    i, end = at, len(data)
    while i < end and len(ops) < LONGEST:
        op = data[i]
        size, mask = _SHAPES.get(op, _NONE)
        if not mask or (calls == 2 and op not in _PUTS):
            break
        following = i + 1 + size
        if op in _EXACT:
            argument = int.from_bytes(data[i + 1 : following], "little")
            if op in GETS:
                if memo.get(argument, LIGHT + 1) > LIGHT:
                    return None
            elif op in TEXTS:
                if argument > LONGEST_TEXT:
                    return None
                following += argument
                mask += bytes(argument)
            elif argument == base + puts:
                step += 1 << 8 * (i + 1 - at)
                puts += 1
            else:
                return None
        calls += op == _CALL
        ops.append(op)
        masks.append(mask)
        i = following
    memoized = ops.count(_MEMOIZE)
    if not _is_record(bytes(ops).translate(_LETTERS)) or (puts and memoized):
        return None
    bits = int.from_bytes(b"".join(masks), "little")
    value = (int.from_bytes(data[at:i], "little") & bits) - base * step
    most = 0x100 if _SHORT_PUT in ops else None
    return Template(i - at, bits, value, step, most, puts, memoized, _LONG_GET in ops)


def _is_record(letters: bytes) -> bool:
    head, _, rest = letters.replace(b"P", b"").partition(b"tQI")
    sizes, _, tail = rest.partition(b"B")
    return b"(P" not in letters and head in _HEADS and sizes in _SIZES and tail in _TAILS
