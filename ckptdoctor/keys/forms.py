"""Keys by form, the texts between their numbers.

Keys of equal blocks have one form, and a rule is fitted to it once: then only numbers are put in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ckptdoctor.keys.capture import Capture, Place, is_within
from ckptdoctor.keys.grammar import Index, Span, Star
from ckptdoctor.keys.names import NUMBER, NUMBER_LIMIT

_NUMBERS = re.compile(f"({NUMBER.pattern})")

Form = tuple[str, ...]
Segment = tuple[tuple[str, ...], tuple[int, ...]]  # its texts, and which numbers of the key stand between


def take_apart(key: str) -> tuple[Form, list[str]]:
    """The key's form and its numbers: ``"h.3.w1"`` is ``("h.", ".w", "")`` and ``["3", "1"]``."""
    parts = _NUMBERS.split(key)
    return tuple(parts[::2]), parts[1::2]


def segments_of(form: Form) -> list[Segment]:
    """The form cut at its dots."""
    found: list[Segment] = []
    texts, slots = [""], list[int]()
    for slot, literal in enumerate(form):
        first, *more = literal.split(".")
        texts[-1] += first
        for text in more:
            found.append((tuple(texts), tuple(slots)))
            texts, slots = [text], []
        if slot + 1 < len(form):
            slots.append(slot)
            texts.append("")
    return [*found, (tuple(texts), tuple(slots))]


@dataclass(frozen=True, slots=True)
class Way:
    """One pattern onto another for the keys of one form: what their numbers must be, and the new name."""

    fixed: tuple[tuple[int, str], ...]  # this number is that
    equal: tuple[tuple[int, int, int], ...]  # one number is as much more than another
    limits: tuple[tuple[int, int, tuple[Span, ...]], ...]  # a number, so much more, is in these spans
    template: str
    terms: tuple[tuple[int, int], ...] | None  # numbers for the template, and how much more; None: all as are

    def rename(self, numbers: Sequence[str]) -> str | None:
        """The new name of the key with these numbers, or None where the pattern does not fit."""
        for slot, text in self.fixed:
            if numbers[slot] != text:
                return None
        for slot, other, more in self.equal:
            if int(numbers[slot]) != int(numbers[other]) + more:
                return None
        for slot, more, spans in self.limits:
            value = int(numbers[slot]) + more
            if not 0 <= value < NUMBER_LIMIT or not is_within(value, spans):
                return None
        if self.terms is None:
            return self.template % tuple(numbers)
        return self.template % tuple([str(int(numbers[s]) + d) if d else numbers[s] for s, d in self.terms])


def fit(old: Capture, new: Capture, form: Form) -> Way | None:
    """The way for keys of this form; None when the pattern fits none of them."""
    return _Fit(new).way(old, segments_of(form), len(form) - 1)


class _Fit:
    def __init__(self, new: Capture) -> None:
        self.new = new
        self.fixed: list[tuple[int, str]] = []
        self.equal: list[tuple[int, int, int]] = []
        self.limits: list[tuple[int, int, tuple[Span, ...]]] = []
        self.where: dict[str, tuple[int, int]] = {}  # variable -> number, offset
        self.stars: list[Segment] = []
        self.text: list[str] = []
        self.terms: list[tuple[int, int]] = []

    def way(self, old: Capture, segments: list[Segment], count: int) -> Way | None:
        if not self.match(old.places, segments):
            return None
        deep = segments[old.deep_at : len(segments) - (len(old.places) - old.deep_at - 1)] if old.deep else []
        self.fill(deep)
        template = "".join(self.text)
        if not template:
            return None  # no segment at all is no key
        plain = self.terms == [(slot, 0) for slot in range(count)]
        terms = None if plain else tuple(self.terms)
        return Way(tuple(self.fixed), tuple(self.equal), tuple(self.limits), template[1:], terms)

    def match(self, places: Sequence[Place | None], segments: list[Segment]) -> bool:
        if None in places:
            at = places.index(None)
            back = len(places) - at - 1
            if len(segments) < at + back:
                return False
            segments = segments[:at] + segments[len(segments) - back :]
        elif len(places) != len(segments):
            return False
        fixed = (p for p in places if p is not None)
        return all(self.segment(place, segment) for place, segment in zip(fixed, segments, strict=True))

    def segment(self, place: Place, segment: Segment) -> bool:
        texts, slots = segment
        if isinstance(place, Star):
            self.stars.append(segment)
            return True
        if place[0] != texts:
            return False
        for spec, slot in zip(place[1], slots, strict=True):
            if isinstance(spec, str):
                self.fixed.append((slot, spec))
            else:
                self.bind(spec, slot)
        return True

    def bind(self, index: Index, slot: int) -> None:
        if index.within:
            self.limits.append((slot, 0, index.within))
        first, offset = self.where.setdefault(index.name, (slot, index.offset))
        if first != slot:
            self.equal.append((slot, first, index.offset - offset))

    def fill(self, deep: Sequence[Segment]) -> None:
        stars = iter(self.stars)
        for piece in self.new.pieces:
            if isinstance(piece, str):
                self.text.append(piece.replace("%", "%%"))
            elif isinstance(piece, Index):
                slot, offset = self.where[piece.name]
                more = piece.offset - offset
                if more or piece.within:
                    self.limits.append((slot, more, piece.within))
                self.number(slot, more)
            elif isinstance(piece, Star):
                self.carry(next(stars))
            else:
                for segment in deep:
                    self.text.append(".")
                    self.carry(segment)

    def carry(self, segment: Segment) -> None:
        (first, *texts), slots = segment
        self.text.append(first.replace("%", "%%"))
        for slot, text in zip(slots, texts, strict=True):
            self.number(slot, 0)
            self.text.append(text.replace("%", "%%"))

    def number(self, slot: int, more: int) -> None:
        self.text.append("%s")
        self.terms.append((slot, more))
