"""Rename rules that are invertible by construction, and the first of many that fits a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ckptdoctor.keys.capture import Capture, capture
from ckptdoctor.keys.forms import Form, Way, fit, take_apart
from ckptdoctor.keys.grammar import Index, Star
from ckptdoctor.keys.names import numbers

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
    """Which of many patterns, in order, fit a key; the cost hardly grows with their number.

    With ``to``, what the key becomes by them: each is then one side of a :class:`Rule`, and PatternError is
    raised for what is none.
    """

    def __init__(self, patterns: Sequence[str], to: Sequence[str] = ()) -> None:
        self._patterns = [capture(text) for text in patterns]
        self._to = [capture(text) for text in to]
        for sides in zip(patterns, to, strict=bool(to)):
            Rule(*sides)
        self._literal: dict[str, list[int]] = {}
        self._root = _Node()
        self._forms: dict[Form, _Filed] = {}  # keys of equal blocks ask once
        for position, pattern in enumerate(self._patterns):
            if pattern.is_literal:
                self._literal.setdefault(pattern.key(), []).append(position)
            else:
                self._root.add(pattern, position)

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> FirstMatch:
        """Of rename rules."""
        return cls([r.from_ for r in rules], [r.to for r in rules])

    def candidates(self, key: str) -> list[int]:
        """Positions of the patterns that may fit, in order; the caller asks each of them."""
        form, numbers = take_apart(key)
        return self._candidates(key, self._filed(form), numbers)

    def renamings(self, key: str) -> Iterator[tuple[int, str]]:
        """Position and new name for each rule that fits, in order."""
        form, numbers = take_apart(key)
        filed = self._filed(form)
        ways = filed.all
        if ways is None:
            ways = self._ways(form, filed, self._candidates(key, filed, numbers))
            if filed.few and not self._literal:
                filed.all = ways  # every key of the form has the same
        for position, way in ways:
            new = way.rename(numbers)
            if new is not None:
                yield position, new

    def first(self, key: str) -> tuple[int, str] | None:
        """Position of the first rule that fits and the new name."""
        return next(self.renamings(key), None)

    def _filed(self, form: Form) -> _Filed:
        filed = self._forms.get(form)
        if filed is None:
            buckets = [b for b in self._root.find("#".join(form).split(".")) if b.entries]
            filed = self._forms[form] = _Filed(buckets)
        return filed

    def _candidates(self, key: str, filed: _Filed, numbers: Sequence[str]) -> list[int]:
        found = list(self._literal.get(key, ()))
        for bucket in filed.buckets:
            found += bucket.fitting(numbers)
        return sorted(found)

    def _ways(self, form: Form, filed: _Filed, positions: Sequence[int]) -> list[tuple[int, Way]]:
        for position in positions:
            if position not in filed.ways:
                filed.ways[position] = fit(self._patterns[position], self._to[position], form)
        return [(p, way) for p in positions if (way := filed.ways[p]) is not None]


class _Filed:
    """What is known of one form: its buckets, and how the rules asked for so far take it."""

    def __init__(self, buckets: list[_Bucket]) -> None:
        self.buckets = buckets
        self.few = all(len(b.entries) < FEW for b in buckets)
        self.ways: dict[int, Way | None] = {}
        self.all: list[tuple[int, Way]] | None = None


class _Bucket:
    """Patterns with the same skeleton, told apart by the first number that some of them fix."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, list[frozenset[int] | None]]] = []
        self._column: int | None = None
        self._by_value: dict[int, list[int]] = {}

    def add(self, position: int, fixed: list[frozenset[int] | None]) -> None:
        self.entries.append((position, fixed))

    def fitting(self, found: Sequence[str]) -> list[int]:
        """The patterns that may fit a key of this skeleton with these numbers."""
        if len(self.entries) < FEW:
            return [position for position, _ in self.entries]
        if self._column is None:
            self._sort()
        assert self._column is not None
        if self._column >= len(found):
            return []
        return self._by_value.get(-1, []) + self._by_value.get(int(found[self._column]), [])

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
