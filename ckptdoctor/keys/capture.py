"""Patterns that take a key apart so that another pattern can put one together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ckptdoctor.keys.grammar import Group, Index, PatternError, Segment, Span, Star, parse
from ckptdoctor.keys.names import NUMBER, NUMBER_LIMIT, printable, skeleton

_NUMBER = "(0|[1-9][0-9]{0,14})"
_NUMBERS = re.compile(f"({NUMBER.pattern})")

Place = Star | tuple[tuple[str, ...], tuple[str | Index, ...]]  # texts, and the numbers between them


@dataclass(frozen=True, slots=True)
class Binding:
    """What the open places of a pattern stood for in one key."""

    indices: dict[str, int]
    stars: tuple[str, ...]
    deep: str  # what `**` stood for, with a dot before each segment; "" for no segment


class Capture:
    """A pattern of literals, ``{i}`` indices, whole-segment ``*`` and at most one ``**``.

    Every key fits in one way at most, so the binding determines the key and the key the binding.
    Raises :class:`PatternError` when the text is not of this kind.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.segments: tuple[Segment, ...] = parse(text)
        self.indices: list[Index] = []
        self.stars = 0
        self.deep = 0
        self._texts = list(map(self._segment_regex, self.segments))
        self.pieces = _pieces(self.segments)
        # Where the regex's groups are, so that a match walks through them and not through the pattern.
        places = [p for p in self.pieces if not isinstance(p, str)]
        self._index_places = [(i, p) for i, p in enumerate(places) if isinstance(p, Index)]
        self._star_places = [i for i, p in enumerate(places) if isinstance(p, Star)]
        self._deep_place = places.index(None) if None in places else -1
        if self.deep > 1:
            raise self.fail("two `**` can share the segments between them in more than one way")

    def fail(self, what: str) -> PatternError:
        """An error that names this pattern."""
        return PatternError(f"pattern `{printable(self.text)}`: {what}")

    @property
    def names(self) -> frozenset[str]:
        """The index variables."""
        return frozenset(i.name for i in self.indices)

    @property
    def is_literal(self) -> bool:
        """Whether the pattern stands for one key only."""
        return not (self.indices or self.stars or self.deep)

    def key(self) -> str:
        """The one key of a literal pattern."""
        return ".".join("".join(a for a in s or () if isinstance(a, str)) for s in self.segments)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile("".join(self._texts))  # slow, and most patterns never need it: see forms.py

    @cached_property
    def places(self) -> list[Place | None]:
        """Per segment: its texts and what stands between them, a star, or None for ``**``."""
        return [_place(s) for s in self.segments]

    @property
    def deep_at(self) -> int:
        """Which segment is the ``**``."""
        return self.segments.index(None)

    def skeletons(self) -> list[str | None]:
        """Per segment: the text with numbers and indices as ``#``; None for ``*``; ``**`` as ``"**"``."""
        return [_skeleton(s) for s in self.segments]

    def _segment_regex(self, segment: Segment) -> str:
        if segment is None:
            self.deep += 1
            return r"((?:\.[^.]*)*)"
        if Star() in segment:
            if len(segment) > 1:
                raise self.fail("`*` stands for a whole segment here")
            self.stars += 1
            return r"\.([^.]*)"
        for left, right in zip((None, *segment), (*segment, None), strict=True):
            self._check_border(left, right)
        return r"\." + "".join(map(self._atom_regex, segment))

    def _check_border(self, left: object, right: object) -> None:
        # `1{i}` and `{i}{j}` could read one number in two ways.
        if isinstance(left, Index) and isinstance(right, Index):
            raise self.fail("two indices need text between them")
        digit_left = isinstance(left, str) and left[-1].isdigit() and isinstance(right, Index)
        digit_right = isinstance(right, str) and right[0].isdigit() and isinstance(left, Index)
        if digit_left or digit_right:
            raise self.fail("an index stands for a whole number; a digit beside it would split the number")

    def _atom_regex(self, atom: str | Index | Group | Star) -> str:
        if isinstance(atom, str):
            return re.escape(atom)
        if isinstance(atom, Index):
            self.indices.append(atom)
            return _NUMBER
        raise self.fail("alternatives like `{a,b}` do not say which goes where; use `*` or one rule each")

    def match(self, key: str) -> Binding | None:
        """What the open places stand for in this key, or None."""
        found = self._regex.fullmatch("." + key)
        if found is None:
            return None
        return self._bind(found.groups())

    def _bind(self, groups: Sequence[str]) -> Binding | None:
        indices: dict[str, int] = {}
        for place, atom in self._index_places:
            value = int(groups[place])
            if atom.within and not is_within(value, atom.within):
                return None
            if indices.setdefault(atom.name, value - atom.offset) != value - atom.offset:
                return None
        deep = groups[self._deep_place] if self._deep_place >= 0 else ""
        return Binding(indices, tuple([groups[place] for place in self._star_places]), deep)

    def fill(self, binding: Binding) -> str | None:
        """The key with these open places, or None when a number would be negative or out of its range.

        Raises :class:`PatternError` for a binding of another pattern, that does not have them all.
        """
        try:
            return self._filled(binding)
        except (KeyError, StopIteration):
            raise self.fail("what it was matched with has fewer indices or wildcards") from None

    def _filled(self, binding: Binding) -> str | None:
        text: list[str] = []
        stars = iter(binding.stars)
        for piece in self.pieces:
            if isinstance(piece, str):
                text.append(piece)
            elif isinstance(piece, Index):
                value = binding.indices[piece.name] + piece.offset
                if not 0 <= value < NUMBER_LIMIT or (piece.within and not is_within(value, piece.within)):
                    return None
                text.append(str(value))
            else:
                text.append(binding.deep if piece is None else next(stars))
        key = "".join(text)
        return key[1:] if key else None  # no segment at all is no key


def _pieces(segments: Sequence[Segment]) -> list[str | Index | Star | None]:
    """The pattern as one sequence: texts with their dots, indices, stars, and None for ``**``."""
    pieces: list[str | Index | Star | None] = []
    for segment in segments:
        # What `**` stands for brings its own dots.
        for atom in (None,) if segment is None else (".", *segment):
            last = pieces[-1] if pieces else None
            if isinstance(atom, str) and isinstance(last, str):
                pieces[-1] = last + atom
            elif not isinstance(atom, Group):  # _segment_regex has refused it
                pieces.append(atom)
    return pieces


def _place(segment: Segment) -> Place | None:
    if segment is None:
        return None
    if Star() in segment:
        return Star()
    texts, open_ = [""], list[str | Index]()
    for atom in segment:
        if isinstance(atom, Index):
            open_.append(atom)
            texts.append("")
        elif isinstance(atom, str):
            first, *more = _NUMBERS.split(atom)
            texts[-1] += first
            open_ += more[::2]
            texts += more[1::2]
    return tuple(texts), tuple(open_)


def is_within(value: int, spans: tuple[Span, ...]) -> bool:
    """Whether the value is in one of the spans; none at all are no limit."""
    return not spans or any(s.low <= value <= s.high for s in spans)


def _skeleton(segment: Segment) -> str | None:
    if segment is None:
        return "**"
    if Star() in segment:
        return None
    return skeleton("".join(a if isinstance(a, str) else "0" for a in segment))


@lru_cache(maxsize=4096)
def capture(text: str) -> Capture:
    """:class:`Capture` of the text; kept, since plans use the same patterns over and over."""
    return Capture(text)
