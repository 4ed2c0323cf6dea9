"""Rename rules that are invertible by construction, and the first of many that fits a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ckptdoctor.keys.capture import Capture, capture
from ckptdoctor.keys.names import skeleton


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
    """Which of many patterns, in order, fit a key; the cost does not grow with their number."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._literal: dict[str, list[int]] = {}
        self._root = _Node()
        for position, text in enumerate(patterns):
            pattern = capture(text)
            if pattern.is_literal:
                self._literal.setdefault(pattern.key(), []).append(position)
            else:
                self._root.add(pattern.skeletons(), position)

    def candidates(self, key: str) -> list[int]:
        """Positions of the patterns that may fit, in order; the caller asks each of them."""
        found = list(self._literal.get(key, ()))
        found += self._root.find([skeleton(s) for s in key.split(".")])
        return sorted(found)


@dataclass
class _Node:
    children: dict[str | None, _Node] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    deep: list[int] = field(default_factory=list)  # patterns whose next segment is `**`

    def add(self, segments: list[str | None], position: int) -> None:
        node = self
        for segment in segments:
            if segment == "**":
                node.deep.append(position)
                return
            node = node.children.setdefault(segment, _Node())
        node.ends.append(position)

    def find(self, segments: list[str]) -> Iterator[int]:
        level = [self]
        for segment in segments:
            below: list[_Node] = []
            for node in level:
                yield from node.deep
                below += (n for s in (segment, None) if (n := node.children.get(s)) is not None)
            level = below
        for node in level:
            yield from node.deep
            yield from node.ends
