"""Rename rules under construction: a formula over families of heads, free or limited to its own rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ckptdoctor.keys import Rule
from ckptdoctor.keys.forms import take_apart
from ckptdoctor.keys.grammar import escape
from ckptdoctor.planner.heads import Head, heads
from ckptdoctor.planner.indices import (
    Formula,
    Within,
    formulas,
    limited_parts,
    limits,
    pattern,
    values,
    variable_names,
)

Literals = tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A rule that may still have to be limited to the numbers that it was made from."""

    old: Literals  # text between the numbers, with a dot before each segment
    new: Literals
    formula: Formula
    tail: str  # "", ".*" or ".**"
    front: str = ""  # "**" before both sides
    within: Within = field(default_factory=dict)  # empty: free
    exact: bool = False  # limited to exactly its own rows

    @property
    def rule(self) -> Rule:
        """The rule as it stands."""
        names = variable_names(self.formula)
        old = self.front + pattern(self.old, self.formula.old, names, self.within)
        new = self.front + pattern(self.new, self.formula.new, names, {})
        return Rule(_dotless(old + self.tail), _dotless(new + self.tail))

    @property
    def depth(self) -> int:
        """How specific: segments that are fixed, whole keys most."""
        fixed = sum(part.count(".") for part in self.old)
        return fixed if self.tail == ".**" or self.front else 10_000 + fixed

    @property
    def free(self) -> int:
        """How many numbers are open."""
        return len(self.formula.columns)

    def limited(self, wrong: Iterable[dict[str, int]]) -> list[Candidate]:
        """The same rule for fewer numbers, so that it no longer fits the names with these indices."""
        names = variable_names(self.formula)
        bad = list(wrong)
        for column in self.formula.columns:
            mine = values(self.formula, column)
            if not self.within and all(b[names[column]] not in mine for b in bad):
                return [replace(self, within=limits({column: mine}))]
        parts = limited_parts(self.formula)
        return [replace(self, formula=f, within=within, exact=True) for f, within in parts]


def _dotless(text: str) -> str:
    return text[1:] if text.startswith(".") else text


def cut(text: str) -> tuple[Literals, tuple[int, ...]]:
    """Texts between the numbers, and the numbers."""
    literals, numbers = take_apart(text)
    return literals, tuple(map(int, numbers))


def head_candidates(pairs: Mapping[str, str]) -> list[Candidate]:
    """Candidates that reproduce the pairs when the most specific one wins."""
    groups: dict[tuple[Literals, Literals, bool], list[tuple[Head, tuple[int, ...], tuple[int, ...]]]] = {}
    for head in heads(pairs):
        old, old_numbers = cut(head.old)
        new, new_numbers = cut(head.new)
        groups.setdefault((old, new, head.tail == ""), []).append((head, old_numbers, new_numbers))
    found: list[Candidate] = []
    for (old, new, _), members in groups.items():
        tail = max((m[0].tail or "" for m in members), key=len)
        rows = [(o, n) for _, o, n in members]
        found += [Candidate(old, new, f, tail) for f in formulas(rows)]
    return found


def explicit(name: str, target: str) -> Rule:
    """The rule for one name only."""
    return Rule(escape(name), escape(target))
