"""Keys with their tensors in a pickle, as many as follow each other; see `pickle_templates`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from struct import Struct
from typing import NamedTuple

from ckptdoctor.formats.pickle_templates import Template, Templates

KEY = 8  # bytes at the end of a key that tell which tensor it is
LARGE = 1 << 16  # bytes of a pickle from which it pays to look for stanzas
SHORTEST, LONGEST = 8, 32  # rows of a stanza
_TEXT = ord("X")

# Of one tensor: its template, where its key ends, the next index of the memo there.
Row = tuple[Template, int, int]


class Kind(NamedTuple):
    """What many tensors have in common: the opcodes before a storage's key and behind it, without a memo."""

    before: bytes
    behind: bytes
    puts: int  # how many entries of the memo a key and its tensor take


class Run(NamedTuple):
    """Keys, each with its tensor; ``base`` and ``next`` are the memo's next index before and behind."""

    length: int
    base: int
    next: int
    keys: list[str] | None  # None: one of them is better left to the unpickler
    storages: list[str] | None
    kinds: list[int]


class Stanza(NamedTuple):
    """Many rows as one, such as all of a layer: everything but their texts, from behind the first key on."""

    length: int
    mask: int
    value: int
    step: int
    last: int
    puts: int
    texts: Callable[[bytes, int], tuple[bytes, ...]]  # a storage's key, the next key, and so on
    kinds: tuple[int, ...]


class Recent:
    """The last rows, in which those are looked for that repeat the ones before them."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._forms: list[tuple[int, int, int]] = []
        self._place: dict[tuple[int, int, int], int] = {}  # the last one of each form
        self._period = self._repeated = 0

    def repeat(self, template: Template, head: int, kind: int, behind: int, base: int) -> bool:
        """Add a row; whether enough of the last ones are like those before them."""
        form, n = (id(template), head, kind), len(self._rows)
        self._rows.append((template, behind, base))
        if self._period and self._forms[n - self._period] == form:
            self._repeated += 1
        else:
            self._period = min(n - self._place.get(form, n), LONGEST)
            self._repeated = int(self._period > 0)
        self._forms.append(form)
        self._place[form] = n
        return self._repeated >= max(self._period, SHORTEST) and self._period > 0

    def stanza(self, data: bytes) -> Stanza:
        """The last rows as one."""
        count = self._period * max(1, SHORTEST // self._period)
        rows = self._rows[-count:]
        _, start, base = rows[0]
        mask = value = step = puts = 0
        end, last, texts = start, rows[0][0].last, ["<"]
        for row, behind, at in rows:
            if behind > start:  # the head of the key counts, the key does not
                shift = 8 * (end - start)
                mask |= 0xFFFFFFFFFF << shift
                value |= int.from_bytes(data[end : end + 5], "little") << shift
                texts.append(f"5x{behind - end - 5}s")
            shift = 8 * (behind - start)
            end = behind + row.length
            # A text may be any; how long it is counts.
            exact = (1 << 8 * row.length) - 1 & ~((1 << 8 * row.text_end) - (1 << 8 * row.text))
            mask |= exact << shift
            value |= (int.from_bytes(data[behind:end], "little") & exact) - base * row.step << shift
            step |= row.step << shift
            last = min(last, row.last - (at - base))
            puts += row.puts
            texts.append(f"{row.text}x{row.text_end - row.text}s{row.length - row.text_end}x")
        kinds = tuple(kind for _, _, kind in self._forms[-count:])
        unpack = Struct("".join(texts)).unpack_from
        return Stanza(end - start, mask, value, step, last, puts, unpack, kinds)


class Records:
    """Takes the runs of one pickle. ``kinds`` are those of all of them."""

    def __init__(self, memo: Mapping[int, int]) -> None:
        self.kinds: list[Kind] = []
        self._same: dict[Kind, int] = {}
        self._templates = Templates(memo)
        self._likely: dict[bytes, Template] = {}  # by the end of the key
        self._last: Template | None = None
        self._stanza: Stanza | None = None  # what comes next, if it goes on as before

    def forget(self) -> None:
        """What was taken from the memo, or the bound, is another now."""
        self._templates.forget()
        self._likely.clear()
        self._last = self._stanza = None

    def one(self, data: bytes, at: int, base: int, bound: int) -> Template | None:
        """The template of a single record, without a key."""
        return self._templates.fitting(data, at, base, bound)

    def run(self, data: bytes, start: int, base: int, bound: int) -> Run | None:
        """All keys with tensors from there on; None where there is none."""
        keys: list[bytes] = []
        storages: list[bytes] = []
        kinds: list[int] = []
        likely, stanza, number = self._likely, self._stanza, int.from_bytes
        at, end, found, first = start, len(data), self._last, base
        recent = Recent() if end >= LARGE else None
        # One loop without calls: it is most of the time that a scan takes.
        while at + 5 < end and data[at] == _TEXT and data[at + 2 : at + 5] == b"\0\0\0":
            behind = at + 5 + data[at + 1]
            if stanza is not None:
                length, mask, value, step, last, puts, unpack, alike_kinds = stanza
                bits = number(data[behind : behind + length], "little")
                if bits & mask == value + base * step and base <= last and behind + length <= end:
                    texts = unpack(data, behind)
                    keys.append(data[at + 5 : behind])
                    keys += texts[1::2]
                    storages += texts[::2]
                    kinds += alike_kinds
                    at = behind + length
                    base += puts
                    continue
                stanza = None
            name = data[behind - KEY : behind]
            found = likely.get(name, found)
            if found is not None:
                length, mask, value, step, last, puts, _, text, text_end, alike, numbers, _, _ = found
                bits = number(data[behind : behind + length], "little")
            if found is None or bits & mask != value + base * step or base > last or behind + length > end:
                found = self._templates.fitting(data, behind, base, bound, found and found.layout)
                if found is None or found.text == found.text_end or found.memoized:
                    found = None
                    break
                likely[name] = found
                continue
            tail = (bits >> 8 * text_end) & alike
            kind = numbers.get(tail)
            if kind is None:
                kind = numbers[tail] = self._kind(found, tail)
            if recent is not None and recent.repeat(found, behind - at, kind, behind, base):
                stanza = recent.stanza(data)
                recent = Recent()
            keys.append(data[at + 5 : behind])
            storages.append(data[behind + text : behind + text_end])
            kinds.append(kind)
            at = behind + length
            base += puts
        self._last, self._stanza = found, stanza
        return Run(at - start, first, base, _texts(keys), _texts(storages), kinds) if keys else None

    def _kind(self, template: Template, bits: int) -> int:
        made = Kind(template.layout.before, template.behind(bits), template.puts)
        kind = self._same.setdefault(made, len(self.kinds))
        if kind == len(self.kinds):
            self.kinds.append(made)
        return kind


def indices(run: Run, kinds: Sequence[Kind]) -> Iterator[int]:
    """Where the keys of a run are in the memo."""
    return accumulate((kinds[number].puts for number in run.kinds[:-1]), initial=run.base)


def _texts(column: list[bytes]) -> list[str] | None:
    """ASCII bytes as texts; None where some are none, or have a null byte in them."""
    joined = b"\0".join(column)
    if not joined.isascii() or joined.count(0) >= len(column):
        return None
    return joined.decode("ascii").split("\0")
