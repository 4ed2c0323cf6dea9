r"""The text form of patterns, shared by folds, globs and rename rules.

A pattern is segments between dots. In a segment: literal text; ``*`` (text without a dot, or one whole
segment); ``{bias,weight}`` and ``{0..11}`` (alternatives); ``{i}``, ``{i+1}``, ``{i:0..3,7}`` (an index).
``**`` alone in a segment stands for any number of segments, none included. A backslash before one of
``\ { } * ,`` makes it literal, and ``\xNN``, ``\uNNNN``, ``\UNNNNNNNN`` name a character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from ckptdoctor.errors import PlanError
from ckptdoctor.keys.names import NUMBER, NUMBER_LIMIT, escape_char, printable

SPECIAL = frozenset("\\{}*,")
_HEX = {"x": 2, "u": 4, "U": 8}
_VARIABLE = re.compile(r"([a-z])([+-][0-9]{1,9})?(?::([0-9.,]+))?")
_RANGE = re.compile(r"([0-9]{1,15})\.\.([0-9]{1,15})")
MAX_UNFOLDED = 2_000_000  # a pattern that stands for more keys than this is a mistake or an attack


class PatternError(PlanError, ValueError):
    """A pattern or rename rule cannot be read, or is not invertible."""


@dataclass(frozen=True, slots=True)
class Span:
    """The whole numbers from ``low`` to ``high``, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Index:
    """``{i+1}``: the number ``i + offset``; ``within`` limits ``i + offset``, empty for any."""

    name: str
    offset: int = 0
    within: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """``{bias,weight}`` or ``{0..3,7}``: one of several texts or numbers."""

    items: tuple[str | Span, ...]

    def texts(self) -> Iterator[str]:
        """Every alternative, in the order written."""
        for item in self.items:
            if isinstance(item, Span):
                yield from map(str, range(item.low, item.high + 1))
            else:
                yield item


@dataclass(frozen=True, slots=True)
class Star:
    """``*``."""


Atom = str | Index | Group | Star
Segment = tuple[Atom, ...] | None  # None is `**`


def escape(text: str) -> str:
    """Literal text as it is written in a pattern; also safe to print."""
    if text.isidentifier() and text.isascii():
        return text
    return "".join(_escaped(c) for c in text)


def _escaped(char: str) -> str:
    if char in SPECIAL:
        return "\\" + char
    return char if char.isprintable() else escape_char(char)


def parse(text: str) -> tuple[Segment, ...]:
    """Read a pattern. Raises :class:`PatternError` with the place."""
    return _Reader(text).segments()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, what: str) -> PatternError:
        return PatternError(f"pattern `{printable(self.text)}`, character {self.at + 1}: {what}")

    def segments(self) -> tuple[Segment, ...]:
        done: list[Segment] = [self.segment()]
        while self.at < len(self.text):
            self.at += 1  # the dot
            done.append(self.segment())
        return tuple(done)

    def segment(self) -> Segment:
        atoms: list[Atom] = []
        literal: list[str] = []
        while self.at < len(self.text) and self.text[self.at] != ".":
            atom = self.atom()
            if isinstance(atom, str):
                literal.append(atom)
                continue
            if literal:
                atoms.append("".join(literal))
                literal.clear()
            atoms.append(atom)
        if literal:
            atoms.append("".join(literal))
        if atoms == [Star(), Star()]:
            return None
        if any(isinstance(a, Star) and isinstance(b, Star) for a, b in pairwise(atoms)):
            raise self.fail("`**` stands alone between dots")
        return tuple(atoms)

    def atom(self) -> Atom:
        char = self.text[self.at]
        if char == "\\":
            return self.escaped()
        if char == "{":
            return self.braces()
        if char == "}":
            raise self.fail("`}` without `{`; write `\\}` for the character itself")
        self.at += 1
        return Star() if char == "*" else char

    def escaped(self) -> str:
        char = self.text[self.at + 1 : self.at + 2]
        if char in SPECIAL and char:
            self.at += 2
            return char
        digits = self.text[self.at + 2 : self.at + 2 + _HEX.get(char, 0)]
        if char not in _HEX or not re.fullmatch(f"[0-9a-fA-F]{{{_HEX[char]}}}", digits):
            raise self.fail("a backslash is written `\\\\`")
        code = int(digits, 16)
        if code > 0x10FFFF or chr(code) == ".":
            raise self.fail("no such character in a segment")
        self.at += 2 + len(digits)
        return chr(code)

    def braces(self) -> Index | Group:
        self.at += 1
        raw_start = self.at
        items: list[str] = [""]
        plain = [True]  # an escaped item is never a range
        while self.at < len(self.text) and self.text[self.at] != "}":
            char = self.text[self.at]
            if char == ",":
                items.append("")
                plain.append(True)
                self.at += 1
            elif char == "\\":
                items[-1] += self.escaped()
                plain[-1] = False
            elif char in "{*":
                raise self.fail(f"`{char}` inside braces; write `\\{char}` for the character itself")
            else:
                items[-1] += char
                self.at += 1
        if self.at == len(self.text):
            raise self.fail("`{` without `}`; write `\\{` for the character itself")
        raw = self.text[raw_start : self.at]
        self.at += 1
        index = _VARIABLE.fullmatch(raw)
        if index:
            return Index(index[1], int(index[2] or 0), self.spans(index[3] or ""))
        return Group(tuple(self.item(i, p) for i, p in zip(items, plain, strict=True)))

    def item(self, text: str, plain: bool) -> str | Span:
        span = _RANGE.fullmatch(text) if plain else None
        if span:
            return self.span(span[1], span[2])
        if "." in text:
            raise self.fail(f"`{printable(text)}` is neither one segment nor a range like 0..11")
        return text

    def span(self, low: str, high: str) -> Span:
        if int(low) > int(high) or str(int(low)) != low or str(int(high)) != high:
            raise self.fail(f"`{low}..{high}` is not a range")
        return Span(int(low), int(high))

    def spans(self, text: str) -> tuple[Span, ...]:
        parts = [self.item(p, True) for p in text.split(",")] if text else []
        spans = [p if isinstance(p, Span) else self.span(p, p) for p in parts if p]
        if len(spans) != len(parts):
            raise self.fail("an empty range")
        return tuple(spans)


def spans_of(values: list[int]) -> tuple[Span, ...]:
    """Sorted distinct numbers as runs: ``[0, 1, 2, 5]`` is ``0..2`` and ``5..5``."""
    runs: list[Span] = []
    for value in values:
        if runs and value == runs[-1].high + 1:
            runs[-1] = Span(runs[-1].low, value)
        else:
            runs.append(Span(value, value))
    return tuple(runs)


def spans_text(spans: tuple[Span, ...]) -> str:
    """``0..2,5``."""
    return ",".join(str(s.low) if s.low == s.high else f"{s.low}..{s.high}" for s in spans)


def index_text(index: Index) -> str:
    """``{i+1}``, ``{i:0..3}``."""
    offset = f"{index.offset:+d}" if index.offset else ""
    within = ":" + spans_text(index.within) if index.within else ""
    return "{" + index.name + offset + within + "}"


def is_number(text: str) -> bool:
    """Whether the text is a number as :data:`ckptdoctor.keys.names.NUMBER` reads it."""
    return NUMBER.fullmatch(text) is not None and int(text) < NUMBER_LIMIT


def render(segments: Iterable[Segment]) -> str:
    """The inverse of :func:`parse`."""
    return ".".join("**" if s is None else "".join(map(_atom_text, s)) for s in segments)


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, str):
        return escape(atom)
    if isinstance(atom, Index):
        return index_text(atom)
    if isinstance(atom, Star):
        return "*"
    return "{" + ",".join(escape(i) if isinstance(i, str) else f"{i.low}..{i.high}" for i in atom.items) + "}"
