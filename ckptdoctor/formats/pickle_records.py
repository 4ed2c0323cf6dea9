"""Keys with their tensors in a pickle, as many as follow each other; see `pickle_templates`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from ckptdoctor.formats.pickle_templates import Template, Templates

KEY = 8  # bytes at the end of a key that tell which tensor it is
_TEXT = ord("X")


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
    keys: list[bytes]
    storages: list[bytes]
    kinds: list[int]


class Records:
    """Takes the runs of one pickle. ``kinds`` are those of all of them."""

    def __init__(self, memo: Mapping[int, int]) -> None:
        self.kinds: list[Kind] = []
        self._same: dict[Kind, int] = {}
        self._templates = Templates(memo)
        self._likely: dict[bytes, Template] = {}  # by the end of the key
        self._last: Template | None = None

    def forget(self) -> None:
        """What was taken from the memo, or the bound, is another now."""
        self._templates.forget()
        self._likely.clear()
        self._last = None

    def one(self, data: bytes, at: int, base: int, bound: int) -> Template | None:
        """The template of a single record, without a key."""
        return self._templates.fitting(data, at, base, bound)

    def run(self, data: bytes, start: int, base: int, bound: int) -> Run | None:
        """All keys with tensors from there on; None where there is none."""
        keys, storages, kinds = [], [], []
        likely, number = self._likely, int.from_bytes
        at, end, found, first = start, len(data), self._last, base
        while at + 5 < end and data[at] == _TEXT and data[at + 2 : at + 5] == b"\0\0\0":
            behind = at + 5 + data[at + 1]
            name = data[behind - KEY : behind]
            found = likely.get(name, found)
            if found is not None:
                length, mask, value, step, last, puts, _, text, text_end, alike, numbers, _, _ = found
                bits = number(data[behind : behind + length], "little")
            if found is None or bits & mask != value + base * step or base > last or behind + length > end:
                found = self._templates.fitting(data, behind, base, bound, found and found.layout)
                if found is None or found.text == found.text_end or found.memoized:
                    break
                likely[name] = found
                continue
            tail = (bits >> 8 * text_end) & alike
            kind = numbers.get(tail)
            if kind is None:
                kind = numbers[tail] = self._kind(found, tail)
            keys.append(data[at + 5 : behind])
            storages.append(data[behind + text : behind + text_end])
            kinds.append(kind)
            at = behind + length
            base += puts
        self._last = found
        return Run(at - start, first, base, keys, storages, kinds) if keys else None

    def _kind(self, template: Template, bits: int) -> int:
        made = Kind(template.layout.before, template.behind(bits), template.puts)
        kind = self._same.setdefault(made, len(self.kinds))
        if kind == len(self.kinds):
            self.kinds.append(made)
        return kind


def indices(run: Run, kinds: Sequence[Kind]) -> Iterator[int]:
    """Where the keys of a run are in the memo."""
    return accumulate((kinds[number].puts for number in run.kinds[:-1]), initial=run.base)


def texts(column: list[bytes]) -> list[str] | None:
    """ASCII bytes as texts; None where some are none, or have a null byte in them."""
    joined = b"\0".join(column)
    if not joined.isascii() or joined.count(0) >= len(column):
        return None
    return joined.decode("ascii").split("\0")
