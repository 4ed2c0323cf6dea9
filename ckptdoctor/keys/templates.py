"""Lists of patterns in a fixed order as one text: ``experts.{0..7}.{w1,w3}.weight``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from math import prod

from ckptdoctor.keys.grammar import Group, PatternError, Segment, Span, is_number, parse, render
from ckptdoctor.keys.names import printable

MAX_SOURCES = 100_000  # more tensors than this in one list are a mistake or an attack


def expand_groups(text: str) -> list[str]:
    """The patterns that a pattern with braces stands for, the last brace turning fastest.

    Indices and wildcards stay: ``expand_groups("h.{i}.{q,k}.*") == ["h.{i}.q.*", "h.{i}.k.*"]``.
    """
    segments = parse(text)
    if not any(isinstance(a, Group) for s in segments for a in s or ()):
        return [text]
    if prod(len(list(a.texts())) for s in segments for a in s or () if isinstance(a, Group)) > MAX_SOURCES:
        raise PatternError(f"`{printable(text)}` stands for more than {MAX_SOURCES} patterns")
    return [render(choice) for choice in product(*map(_segment_choices, segments))]


def _segment_choices(segment: Segment) -> list[Segment]:
    if segment is None:
        return [None]
    choices = ([*a.texts()] if isinstance(a, Group) else [a] for a in segment)
    return [tuple(c) for c in product(*choices)]


def fold_in_order(texts: Sequence[str]) -> list[str]:
    """Fewer texts that :func:`expand_groups` expands to the given ones in the given order."""
    if len(texts) < 2:
        return list(texts)
    rows = [parse(t) for t in texts]
    if len({len(r) for r in rows}) > 1:
        return list(texts)
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    if prod(map(len, columns)) != len(rows) or list(product(*columns)) != rows:
        return list(texts)
    if not all(len(c) == 1 or all(_plain(s) for s in c) for c in columns):
        return list(texts)
    return [render(_group(c) for c in columns)]


def _plain(segment: Segment) -> bool:
    return segment is not None and all(isinstance(a, str) for a in segment)


def _group(column: Sequence[Segment]) -> Segment:
    if len(column) == 1:
        return column[0]
    return (Group(tuple(_runs("".join(a for a in s or () if isinstance(a, str)) for s in column))),)


def _runs(texts: Iterable[str]) -> list[str | Span]:
    items: list[str | Span] = []
    for text in texts:
        last = items[-1] if items else None
        if not is_number(text):
            items.append(text)
        elif isinstance(last, Span) and last.high + 1 == int(text):
            items[-1] = Span(last.low, last.high + 1)
        else:
            items.append(Span(int(text), int(text)))
    return [str(i.low) if isinstance(i, Span) and i.low == i.high else i for i in items]
