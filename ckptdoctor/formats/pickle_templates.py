"""Tensor records of a pickle as ``torch.save`` writes them, told from all others by one comparison.

What is at a place says which of the few ways of writing a record it could be, its `Layout`. Such a record is
put together here, of nothing but what torch writes and with the memo's indices that must be in it. Where the
bits that count in it are those at the place, it is there, and so are the others like it: they are skipped
without a look at each of their opcodes, and without a regular expression, which takes long to compile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ckptdoctor.formats.pickle_opcodes import FIXED, GETS

LIGHT = 2  # the weight of what a record may take from the memo: texts and globals
MOST = 64  # templates that are tried for one record
LONGEST_TEXT, MOST_DIMENSIONS = 255, 12

_NONE, _SHORT_PUT = ord("N"), ord("q")
_MARK, _EMPTY, _TUPLES = ord("("), ord(")"), (b"", b"\x85", b"\x86", b"\x87")
_NUMBERS = {op: (1 + FIXED[op], b"\xff" + bytes(FIXED[op])) for op in b"KMJ"}
_TEXTS = {ord("X"): 4, 0x8C: 1}  # bytes of the length
_PUTS = {_SHORT_PUT: 2, ord("r"): 5, 0x94: 1}  # bytes with the index
_ONES = [b"\xff" * n for n in range(16)]
_MOST_PUTS = 8
# What puts the next objects into the memo, one after the other: the first few of them with a short index, ...
_FORMS = [
    [b"q%c" % n if n < short else b"r%c\0\0\0" % n for n in range(_MOST_PUTS)]
    for short in range(_MOST_PUTS + 1)
]
# ... or all without one, or nothing does.
_MEMOIZED, _NO_MEMO = len(_FORMS), len(_FORMS) + 1
_FORMS += [[b"\x94"] * _MOST_PUTS, [b""] * _MOST_PUTS]


class Template(NamedTuple):
    """The bytes of one way of writing a record, with the memo's next index taken out: what counts in them is
    ``value + next * step``. It begins with the record, or behind the text of a key, which it then puts there.
    """

    length: int
    mask: int  # what counts: all but numbers and the text
    value: int
    step: int
    last: int  # the highest next index that it is for
    puts: int
    memoized: int
    text: int  # where the storage's key is; 0 where it is taken from the memo
    text_end: int
    alike: int  # what is the same, behind the text, in all records of a kind: all but indices that are put
    kinds: dict[int, int]  # the numbers of kinds by that
    layout: Layout
    form: int

    def behind(self, bits: int) -> bytes:
        """The opcodes behind the text without those that put something into the memo."""
        raw, made, at = bits.to_bytes(self.length - self.text_end, "little"), [], 0
        puts, first = _FORMS[self.form], self.layout.text
        for n, (piece, _) in enumerate(self.layout.pieces[first + 1 :], first):
            at += len(puts[n])
            made.append(raw[at : at + len(piece)])
            at += len(piece)
        return b"".join(made)


class Layout:
    """The opcodes of records: pieces with the bits that count in them, and behind each something may be put
    into the memo. The storage's key is the text at the end of one of them.
    """

    def __init__(self, pieces: tuple[tuple[bytes, bytes], ...], text: int, op: int, bound: int) -> None:
        self.pieces, self.text, self.op, self._bound = pieces, text, op, bound
        self.key = pieces, text, op
        self.before = b"".join([piece for piece, _ in pieces[: text + 1]])
        self._made: dict[tuple[int, int], Template] = {}
        self._like: dict[int, Template] = {}  # one of each form

    def template(self, form: int, size: int) -> Template:
        """It with a text of that size, and with that way of numbering the memo."""
        found = self._made.get((form, size))
        if found is None:
            if len(self._made) == MOST:
                self._made.clear()
            like = self._like.get(form)
            found = self._new(form, size) if like is None else _resized(like, size)
            self._made[form, size] = self._like[form] = found
        return found

    def _new(self, form: int, size: int) -> Template:
        values, masks = [], []
        at = text = text_end = step = indices = 0
        for n, ((value, mask), put) in enumerate(zip(self.pieces, _FORMS[form], strict=False)):
            values.append(value)
            masks.append(mask)
            at += len(value)
            if n == self.text:
                head = bytes([self.op]) + size.to_bytes(_TEXTS[self.op], "little")
                values += (head, bytes(size))
                masks += (_ONES[len(head)], bytes(size))
                text = at + len(head)
                at = text_end = text + size
            values.append(put)
            masks.append(_ONES[len(put)])
            if len(put) > 1:
                step += 1 << 8 * (at + 1)
                indices += ((1 << 8 * (len(put) - 1)) - 1) << 8 * (at + 1)
            at += len(put)
        numbered = len(self.pieces) if step else 0
        short = min(form, numbered)
        return Template(
            at,
            int.from_bytes(b"".join(masks), "little"),
            int.from_bytes(b"".join(values), "little"),
            step,
            min(self._bound - numbered, 0x100 - short if short else self._bound),
            numbered,
            len(self.pieces) if form == _MEMOIZED else 0,
            text,
            text_end,
            ((1 << 8 * at) - 1 - indices) >> 8 * text_end,
            {},
            self,
            form,
        )


def _resized(template: Template, size: int) -> Template:
    """The same with a text of another size."""
    length, mask, value, step, last, puts, memoized, text, text_end, alike, kinds, layout, form = template
    below, above, shift = (1 << 8 * text) - 1, 8 * text_end, 8 * (text + size)
    place = 8 * (text - _TEXTS[layout.op])  # of the size itself
    return Template(
        length + text + size - text_end,
        (mask & below) + (mask >> above << shift),
        (value & below) + ((size - text_end + text) << place) + (value >> above << shift),
        (step & below) + (step >> above << shift),
        last,
        puts,
        memoized,
        text,
        text + size,
        alike,
        kinds,
        layout,
        form,
    )


class _Odd(Exception):
    """No record, or not as torch writes most of them."""


class Templates:
    """Those of one pickle, whose memo has objects of these weights."""

    def __init__(self, memo: Mapping[int, int]) -> None:
        self._memo = memo
        self._known: list[Template] = []
        self._layouts: dict[object, Layout] = {}

    def forget(self) -> None:
        """What they took from the memo, or the bound, is another now."""
        self._known.clear()
        self._layouts.clear()

    def fitting(
        self, data: bytes, at: int, base: int, bound: int, likely: Layout | None = None
    ) -> Template | None:
        """The template of the record at this place, a new one if need be; None where there is no record.

        ``base`` is the next index of the memo where BINPUT numbers it, and ``bound`` above all that may be
        there.
        """
        if at >= len(data):
            return None
        found = likely and _with_other_text(likely, data, at, base)
        if found:
            return found
        for i, known in enumerate(self._known):
            if _fits(known, data, at, base):
                if i:  # in front, since the next one is often like it
                    self._known.insert(0, self._known.pop(i))
                return known
        found = self._new(data, at, base, bound)
        if found is not None:
            self._known.insert(0, found)
            del self._known[MOST:]
        return found

    def _new(self, data: bytes, at: int, base: int, bound: int) -> Template | None:
        """The template of the record at this place; None where there is none."""
        draft = _Draft(data, at, self._memo)
        try:
            draft.record()
        except (_Odd, LookupError):
            return None
        made = Layout(tuple(draft.pieces), draft.text, draft.op, bound)
        layout = self._layouts.get(made.key, made)
        found = layout.template(_form(draft.put, base), draft.size)
        if not _fits(found, data, at, base):
            return None
        if len(self._layouts) == MOST:
            self._layouts.clear()
        self._layouts[made.key] = layout
        return found


def _with_other_text(layout: Layout, data: bytes, at: int, base: int) -> Template | None:
    """The template of a record behind a key, if it is of this layout, whatever the storage's key."""
    size = _PUTS.get(data[at])
    put, head = (None, at) if size is None else (data[at], at + size)
    head += len(layout.before)
    found = layout.template(_form(put, base), data[head + 1]) if head + 1 < len(data) else None
    return found if found is not None and _fits(found, data, at, base) else None


def _form(put: int | None, base: int) -> int:
    """How the memo is numbered from its next index on, by the opcode that puts something into it."""
    if put is None:
        return _NO_MEMO
    return _MEMOIZED if put == 0x94 else min(max(0x100 - base, 0), _MOST_PUTS)


def _fits(template: Template, data: bytes, at: int, base: int) -> bool:
    length, mask, value, step, last = template[:5]
    return (
        int.from_bytes(data[at : at + length], "little") & mask == value + base * step
        and base <= last  # an index that needs one more byte would run into what is behind it
        and at + length <= len(data)
    )


class _Draft:
    """A record in the making: its bytes, with zeros for what does not count, and which bits do."""

    def __init__(self, data: bytes, at: int, memo: Mapping[int, int]) -> None:
        self._data, self._at, self._memo = data, at, memo
        self._values: list[bytes] = []
        self._masks: list[bytes] = []
        self.pieces: list[tuple[bytes, bytes]] = []
        self.put: int | None = None  # the opcode that puts something into the memo
        self.text, self.op, self.size = -1, 0, 0  # the piece it ends, its opcode and its bytes

    def record(self) -> None:
        """All of it."""
        data = self._data
        if data[self._at] in _PUTS:  # of a key
            self._end()
        self._get()  # the function
        self._fixed(b"((")
        self._get()  # "storage"
        self._get()  # its type
        self._key()
        self._get()  # location
        self._number()  # of elements
        if data[self._at] == _NONE:
            self._fixed(b"N")
        self._fixed(b"t")
        self._end()
        self._fixed(b"Q")
        self._number()  # offset
        self._sizes()
        self._sizes()  # strides
        self._fixed(b"\x88" if data[self._at] == 0x88 else b"\x89")
        self._get()  # the class of its hooks
        self._fixed(b")R")
        self._end()
        if data[self._at] != ord("t"):
            self._get()  # metadata
        self._fixed(b"t")
        self._end()
        self._fixed(b"R")
        self._end()

    def _fixed(self, piece: bytes) -> None:
        self._values.append(piece)
        self._masks.append(_ONES[len(piece)])
        self._at += len(piece)

    def _get(self) -> None:
        """Something light from the memo."""
        data, at = self._data, self._at
        size = FIXED[op] + 1 if (op := data[at]) in GETS else 0
        if self._memo.get(int.from_bytes(data[at + 1 : at + size], "little"), LIGHT + 1) > LIGHT or not size:
            raise _Odd
        self._values.append(data[at : at + size])
        self._masks.append(_ONES[size])
        self._at = at + size

    def _end(self) -> None:
        """A piece ends where something is put into the memo, if anything is."""
        self.pieces.append((b"".join(self._values), b"".join(self._masks)))
        self._values, self._masks = [], []
        op = self._data[self._at] if self._at < len(self._data) else None
        if op in _PUTS:
            self.put = op if self.put is None else self.put
            self._at += _PUTS[op]

    def _key(self) -> None:
        """A text, or one from the memo."""
        op = self._data[self._at]
        size = _TEXTS.get(op)
        if size is None:
            self._get()
            return
        self.text, self.op = len(self.pieces), op
        self.size = int.from_bytes(self._data[self._at + 1 : self._at + 1 + size], "little")
        if self.size > LONGEST_TEXT:
            raise _Odd
        self._at += 1 + size + self.size
        self._end()

    def _number(self) -> None:
        """Any number."""
        op = self._data[self._at]
        size, mask = _NUMBERS[op]
        self._values.append(bytes([op]) + bytes(size - 1))
        self._masks.append(mask)
        self._at += size

    def _sizes(self) -> None:
        """A tuple of numbers."""
        data, op, count = self._data, self._data[self._at], 0
        if op == _EMPTY:
            self._fixed(b")")
            return
        if op == _MARK:
            self._fixed(b"(")
        while data[self._at] in _NUMBERS and count < MOST_DIMENSIONS:
            self._number()
            count += 1
        if op != _MARK and not 0 < count < len(_TUPLES):
            raise _Odd
        self._fixed(b"t" if op == _MARK else _TUPLES[count])
        self._end()
