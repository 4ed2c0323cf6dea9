"""Rows of numbers as few formulas: (1,0) -> (0,0), (2,5) -> (1,5), ... is (i, j) -> (i-1, j)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from ckptdoctor.keys.grammar import Index, Span, escape, index_text, spans_of

Row = tuple[tuple[int, ...], tuple[int, ...]]  # numbers of the old name, of the new one
Within = dict[int, tuple[Span, ...]]  # the numbers that a variable column may take
MAX_LOOKAHEAD = 64  # rows; beyond, the split into the fewest parts has to do
MAX_WAYS = 40  # ways to split that are compared; names with more numbers are split by the old ones only
NAMES = "ijklmnopqrstuvwxyzabcdefgh"


@dataclass(frozen=True)
class Term:
    """``column + offset`` of the old numbers, or a constant when ``column`` is None."""

    column: int | None
    offset: int


@dataclass(frozen=True)
class Formula:
    """Old and new numbers as terms over the same columns, and the rows that it was made from."""

    old: tuple[Term, ...]
    new: tuple[Term, ...]
    rows: tuple[Row, ...]

    @property
    def columns(self) -> list[int]:
        """The columns that are variables."""
        return [c for c, term in enumerate(self.old) if term == Term(c, 0)]


def formulas(rows: Sequence[Row]) -> list[Formula]:
    """Few formulas that together give exactly these rows."""
    whole = _one_formula(rows)
    if whole is not None:
        return [whole]
    return [f for part in _best_split(rows) for f in formulas(part)]


def _one_formula(rows: Sequence[Row]) -> Formula | None:
    first_old, first_new = rows[0]
    varying = [c for c in range(len(first_old)) if any(r[0][c] != first_old[c] for r in rows)]
    used: set[int] = set()
    new: list[Term] = []
    for column, value in enumerate(first_new):
        term = _term(rows, varying, used, column, value)
        if term is None:
            return None
        new.append(term)
    if len(used) > len(NAMES):
        return None
    old = _old_terms(rows, varying, used)
    return None if old is None else Formula(old, tuple(new), tuple(rows))


def _term(rows: Sequence[Row], varying: list[int], used: set[int], column: int, value: int) -> Term | None:
    if all(r[1][column] == value for r in rows):
        return Term(None, value)
    fits = [c for c in varying if len({r[1][column] - r[0][c] for r in rows}) == 1]
    if not fits:
        return None
    # Two columns that always agree: the one that nothing uses yet keeps both.
    chosen = next((c for c in fits if c not in used), fits[0])
    used.add(chosen)
    return Term(chosen, value - rows[0][0][chosen])


def _old_terms(rows: Sequence[Row], varying: list[int], used: set[int]) -> tuple[Term, ...] | None:
    """Terms of the old numbers; None when a number varies that the new name does not determine."""
    terms: list[Term] = []
    for column, value in enumerate(rows[0][0]):
        if column in used:
            terms.append(Term(column, 0))
            continue
        if column not in varying:
            terms.append(Term(None, value))
            continue
        twin = next((c for c in sorted(used) if len({r[0][column] - r[0][c] for r in rows}) == 1), None)
        if twin is None:
            return None
        terms.append(Term(twin, value - rows[0][0][twin]))
    return tuple(terms)


def _best_split(rows: Sequence[Row]) -> list[list[Row]]:
    """The split that promises the fewest formulas."""
    splits = _splits(rows)
    if len(rows) > MAX_LOOKAHEAD or len(splits) > MAX_WAYS:
        return splits[0]
    best, least = splits[0], len(rows) + 1
    for parts in splits:
        needed = _promise(parts, least, depth=1)
        if needed < least:
            best, least = parts, needed
    return best


def _promise(parts: Sequence[Sequence[Row]], limit: int, depth: int) -> int:
    """How many formulas these parts will need; ``limit`` when that many or more."""
    total = 0
    for number, part in enumerate(parts):
        if _one_formula(part) is not None:
            total += 1
        elif depth == 0:
            total += len(_splits(part)[0])
        else:
            left = limit - total
            total += min(_promise(finer, left, depth - 1) for finer in _splits(part))
        if total + len(parts) - number - 1 >= limit:
            return limit
    return total


def _splits(rows: Sequence[Row]) -> list[list[list[Row]]]:
    """Ways to part the rows: by an old number, or by how far a new one is from it; fewest first."""
    varying = [c for c in range(len(rows[0][0])) if any(r[0][c] != rows[0][0][c] for r in rows)]
    width = len(rows[0][1]) if len(varying) * len(rows[0][1]) <= MAX_WAYS else 0
    ways: list[list[list[Row]]] = []
    for old in varying:
        for new in range(width):
            ways.append(_parts((r[1][new] - r[0][old] for r in rows), rows))
        ways.append(_parts((r[0][old] for r in rows), rows))
    found = sorted((parts for parts in ways if len(parts) > 1), key=len)
    return found or [[[row] for row in rows]]  # one old name becomes several: a tensor tied in three places


def _parts(labels: Iterable[int], rows: Sequence[Row]) -> list[list[Row]]:
    parts: dict[int, list[Row]] = {}
    for label, row in zip(labels, rows, strict=True):
        parts.setdefault(label, []).append(row)
    return list(parts.values())


def values(formula: Formula, column: int) -> list[int]:
    """The values that a variable takes in the rows, sorted."""
    return sorted({r[0][column] for r in formula.rows})


def boxes(formula: Formula) -> list[dict[int, list[int]]]:
    """The rows as products ``{column: values}``; together exactly the rows."""
    columns = formula.columns
    table: list[dict[int, list[int]]] = [{c: [old[c]] for c in columns} for old, _ in formula.rows]
    for column in reversed(columns):
        groups: dict[Hashable, dict[int, list[int]]] = {}
        for box in table:
            others = tuple((c, tuple(v)) for c, v in box.items() if c != column)
            if others in groups:
                groups[others][column].extend(box[column])
            else:
                groups[others] = {c: list(v) for c, v in box.items()}
        table = list(groups.values())
    return [{c: sorted(set(v)) for c, v in box.items()} for box in table]


def pattern(literals: Sequence[str], terms: Sequence[Term], names: dict[int, str], within: Within) -> str:
    """The text of one side: literals with the terms between them."""
    parts = [escape(literals[0])]
    for term, literal in zip(terms, literals[1:], strict=True):
        if term.column is None:
            parts.append(str(term.offset))
        else:
            parts.append(index_text(Index(names[term.column], term.offset, within.get(term.column, ()))))
        parts.append(escape(literal))
    return "".join(parts)


def variable_names(formula: Formula) -> dict[int, str]:
    """``i``, ``j``, ... for the variable columns, in order."""
    return dict(zip(formula.columns, NAMES, strict=False))


def limits(box: dict[int, list[int]]) -> Within:
    """The values of a box as spans."""
    return {c: spans_of(v) for c, v in box.items()}


def limited_parts(formula: Formula) -> list[tuple[Formula, Within]]:
    """The formula cut into products, each with exactly its numbers."""
    parts: list[tuple[Formula, Within]] = []
    for box in boxes(formula):
        rows = [r for r in formula.rows if all(r[0][c] in v for c, v in box.items())]
        part = formulas(rows)[0]  # what holds for all rows holds for some
        parts.append((part, {c: v for c, v in limits(box).items() if c in part.columns}))
    return parts
