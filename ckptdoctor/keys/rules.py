"""Rename rules that are invertible by construction, and the first of many that fits a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ckptdoctor.keys.capture import Capture, capture
from ckptdoctor.keys.grammar import Index, Star
from ckptdoctor.keys.names import numbers, skeleton

FEW = 4  # so many patterns are asked one by one
MAX_FILED = 1000  # numbers under which one pattern is filed


@dataclass(frozen=True)
class Rule:
    """``Rule("layer{i}.**", "stages.{i-1}.**")``: one pattern of names onto another.

    Indices are whole numbers and appear on both sides; ``{i:0..3,7}`` limits the number at that place;
    ``*`` (one segment) and ``**`` (any number of segments) are carried over in order. No two keys get
    the same new name, and :meth:`inverse` undoes the rule exactly.
    Raises :class:`PatternError` for a rule that loses or invents something.
    """

    from_: str
    to: str
    _from: Capture = field(init=False, repr=False, compare=False)
    _to: Capture = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_from", capture(self.from_))
        object.__setattr__(self, "_to", capture(self.to))
        lost = self._from.names ^ self._to.names
        if lost:
            name = min(lost)
            raise self._from.fail(f"`{{{name}}}` must be on both sides of `{self}`, or the way back is lost")
        if (self._from.stars, self._from.deep) != (self._to.stars, self._to.deep):
            raise self._from.fail(f"`{self}` must have as many `*` and `**` on the right as on the left")

    def __str__(self) -> str:
        return f"{self.from_} -> {self.to}"

    def apply(self, key: str) -> str | None:
        """The new name, or None when the rule does not fit the key."""
        binding = self._from.match(key)
        return None if binding is None else self._to.fill(binding)

    def inverse(self) -> Rule:
        """The rule back: ``inverse().apply(apply(key)) == key`` for every key that fits."""
        return Rule(self.to, self.from_)


class FirstMatch:
    """Which of many patterns, in order, fit a key; the cost hardly grows with their number."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._literal: dict[str, list[int]] = {}
        self._root = _Node()
        self._buckets: dict[str, list[_Bucket]] = {}  # by skeleton: keys of equal blocks ask once
        for position, text in enumerate(patterns):
            pattern = capture(text)
            if pattern.is_literal:
                self._literal.setdefault(pattern.key(), []).append(position)
            else:
                self._root.add(pattern, position)

    def candidates(self, key: str) -> list[int]:
        """Positions of the patterns that may fit, in order; the caller asks each of them."""
        text = skeleton(key)
        buckets = self._buckets.get(text)
        if buckets is None:
            buckets = [b for b in self._root.find(text.split(".")) if b.entries]
            self._buckets[text] = buckets
        found = list(self._literal.get(key, ()))
        if buckets:
            counted = numbers(key)
            for bucket in buckets:
                found += bucket.fitting(counted)
        return sorted(found)


class _Bucket:
    """Patterns with the same skeleton, told apart by the first number that some of them fix."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, list[frozenset[int] | None]]] = []
        self._column: int | None = None
        self._by_value: dict[int, list[int]] = {}

    def add(self, position: int, fixed: list[frozenset[int] | None]) -> None:
        self.entries.append((position, fixed))

    def fitting(self, found: Sequence[int]) -> list[int]:
        """The patterns that may fit a key of this skeleton with these numbers."""
        if len(self.entries) < FEW:
            return [position for position, _ in self.entries]
        if self._column is None:
            self._sort()
        assert self._column is not None
        if self._column >= len(found):
            return []
        return self._by_value.get(-1, []) + self._by_value.get(found[self._column], [])

    def _sort(self) -> None:
        """Choose the number that most patterns fix, and file the patterns by it; -1 are those with any."""
        width = max(len(fixed) for _, fixed in self.entries)
        counts = [sum(f[c] is not None for _, f in self.entries if c < len(f)) for c in range(width)]
        self._column = max(range(width), key=counts.__getitem__, default=0)
        for position, fixed in self.entries:
            values = fixed[self._column] if self._column < len(fixed) else None
            for value in (-1,) if values is None else values:
                self._by_value.setdefault(value, []).append(position)


@dataclass
class _Node:
    children: dict[str | None, _Node] = field(default_factory=dict)
    ends: _Bucket = field(default_factory=_Bucket)
    deep: _Bucket = field(default_factory=_Bucket)  # patterns whose next segment is `**`

    def add(self, pattern: Capture, position: int) -> None:
        node = self
        fixed = _fixed_numbers(pattern)
        for segment in pattern.skeletons():
            if segment == "**":
                node.deep.add(position, fixed)
                return
            node = node.children.setdefault(segment, _Node())
        node.ends.add(position, fixed)

    def find(self, segments: list[str]) -> Iterator[_Bucket]:
        level = [self]
        for segment in segments:
            below: list[_Node] = []
            for node in level:
                yield node.deep
                below += (n for s in (segment, None) if (n := node.children.get(s)) is not None)
            level = below
        for node in level:
            yield node.deep
            yield node.ends


def _fixed_numbers(pattern: Capture) -> list[frozenset[int] | None]:
    """For each number before the first wildcard: the values that fit, None for any."""
    fixed: list[frozenset[int] | None] = []
    for segment in pattern.segments:
        if segment is None or Star() in segment:
            break
        for atom in segment:
            if isinstance(atom, str):
                fixed += (frozenset([n]) for n in numbers(atom))
            elif isinstance(atom, Index):
                small = atom.within and sum(s.high - s.low + 1 for s in atom.within) <= MAX_FILED
                values = (n for s in atom.within for n in range(s.low, s.high + 1))
                fixed.append(frozenset(values) if small else None)
    return fixed
