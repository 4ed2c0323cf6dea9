"""Exact folding: many keys as few lines that stand for the same keys and for nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, product

from ckptdoctor.keys.grammar import (
    MAX_UNFOLDED,
    Group,
    PatternError,
    escape,
    parse,
    spans_of,
    spans_text,
)
from ckptdoctor.keys.names import NUMBER, natural_key, printable

MAX_ALTERNATIVES = 8  # more names in one pair of braces are harder to read than lines

Cell = int | tuple[int, ...]  # one number, or several in ascending order
_NUMBERS = re.compile(f"({NUMBER.pattern})")


@dataclass(frozen=True, slots=True)
class Fold:
    """Keys that one text stands for: ``layers.{0..11}.attn.{bias,weight}``. ``text`` is safe to print."""

    text: str
    keys: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many keys."""
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class _Row:
    """Literal texts with cells between them, and the alternatives of the last segment."""

    literals: tuple[str, ...]
    cells: tuple[Cell, ...]
    leaves: tuple[str, ...] = ()

    def pieces(self) -> Iterable[tuple[str, ...]]:
        for i, literal in enumerate(self.literals):
            yield (literal,)
            if i < len(self.cells):
                yield tuple(map(str, _values(self.cells[i])))
        if self.leaves:
            yield self.leaves

    def keys(self) -> tuple[str, ...]:
        return tuple("".join(p) for p in product(*self.pieces()))

    def text(self) -> str:
        shown = [escape(self.literals[0])]
        for cell, literal in zip(self.cells, self.literals[1:], strict=False):
            values = _values(cell)
            inner = spans_text(spans_of(list(values)))
            shown += [inner if len(values) == 1 else "{" + inner + "}", escape(literal)]
        if self.leaves:
            shown.append("{" + ",".join(escape(leaf) for leaf in self.leaves) + "}")
        return "".join(shown)


def fold(keys: Iterable[str]) -> list[Fold]:
    """Fold keys exactly, in natural order.

    Numbers fold where they stand (``layers.{0..11}.w``, ``layer{1..4}.w``), leaf names last
    (``fc.{bias,weight}``). The texts unfold to exactly the given keys: gaps are written out
    (``{0..3,7}``) and no product is formed that does not exist.
    """
    rows: list[_Row] = []
    for literals, table in _by_skeleton(keys).items():
        rows += [_Row(literals, cells) for cells in _merge_numbers(table)]
    folds = [Fold(row.text(), row.keys()) for row in _merge_leaves(rows)]
    folds.sort(key=lambda f: natural_key(f.keys[0]))
    return folds


def _values(cell: Cell) -> tuple[int, ...]:
    return (cell,) if isinstance(cell, int) else cell


def _by_skeleton(keys: Iterable[str]) -> dict[tuple[str, ...], list[tuple[Cell, ...]]]:
    groups: dict[tuple[str, ...], list[tuple[Cell, ...]]] = {}
    for key in dict.fromkeys(keys):
        parts = _NUMBERS.split(key)
        groups.setdefault(tuple(parts[::2]), []).append(tuple(map(int, parts[1::2])))
    return groups


def _merge_numbers(table: list[tuple[Cell, ...]]) -> list[tuple[Cell, ...]]:
    """Join rows that differ in one column only, from the innermost number outwards."""
    if len(table) == 1:
        return table
    for column in reversed(range(len(table[0]))):
        groups: dict[tuple[Cell, ...], list[Cell]] = {}
        for row in table:
            groups.setdefault(row[:column] + row[column + 1 :], []).append(row[column])
        table = [(*r[:column], _union(c), *r[column:]) for r, c in groups.items()]
    return table


def _union(cells: list[Cell]) -> Cell:
    if len(cells) == 1:
        return cells[0]
    return tuple(sorted(chain.from_iterable(map(_values, cells))))


def _merge_leaves(rows: list[_Row]) -> list[_Row]:
    groups: dict[tuple[str, tuple[str, ...], tuple[Cell, ...]], list[_Row]] = {}
    for row in rows:
        groups.setdefault((_head(row), row.literals[:-1], row.cells), []).append(row)
    merged: list[_Row] = []
    for (head, literals, cells), members in groups.items():
        if not head or not 1 < len(members) <= MAX_ALTERNATIVES:
            merged += members
            continue
        leaves = sorted((m.literals[-1][len(head) :] for m in members), key=natural_key)
        merged.append(_Row((*literals, head), cells, tuple(leaves)))
    return merged


def _head(row: _Row) -> str:
    """The last literal up to its last dot, or ``""`` when the last segment holds a number or is the key."""
    head, dot, leaf = row.literals[-1].rpartition(".")
    if not dot or not _plain_leaf(leaf):
        return ""
    return head + dot


def _plain_leaf(leaf: str) -> bool:
    # A leaf of digits is no name: `{007,bias}` would show a text where people read a number.
    return not leaf.isdigit()


def unfold(text: str) -> list[str]:
    """Every key that a text without wildcards stands for, in the order written.

    Raises :class:`PatternError` for wildcards, index variables and absurdly many keys.
    """
    choices: list[list[str]] = []
    total = 1
    for number, segment in enumerate(parse(text)):
        if number:
            choices.append(["."])
        if segment is None:
            raise PatternError(f"`{printable(text)}` has a wildcard; it stands for no fixed list of keys")
        for atom in segment:
            if isinstance(atom, str):
                choices.append([atom])
                continue
            if not isinstance(atom, Group):
                raise PatternError(f"`{printable(text)}` has a wildcard; it stands for no fixed list of keys")
            total *= sum(1 if isinstance(i, str) else i.high - i.low + 1 for i in atom.items)
            if total > MAX_UNFOLDED:
                raise PatternError(f"`{printable(text)}` stands for more than {MAX_UNFOLDED} keys")
            choices.append(list(atom.texts()))
    return ["".join(p) for p in product(*choices)]
