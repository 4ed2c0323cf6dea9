"""Globs by segment: what a person writes after ``--reinit`` and a plan writes in its lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ckptdoctor.keys.folding import unfold
from ckptdoctor.keys.grammar import Group, Index, PatternError, Segment, Star, parse, spans_text
from ckptdoctor.keys.names import printable

MAX_DEEP = 4  # more than this many `**` in one pattern would make matching slow
_NUMBER = "(?:0|[1-9][0-9]{0,14})"


def matches(pattern: str, key: str) -> bool:
    """Whether the whole key fits the pattern, segment by segment.

    ``matches("fc.*", "fc.bias")``, ``matches("layers.{0..3}.**", "layers.2.mlp.fc1.weight")``; ``*``
    never crosses a dot. Raises :class:`PatternError` when the pattern cannot be read.
    """
    return _compiled(pattern).fullmatch("." + key) is not None


def select(pattern: str, keys: Iterable[str]) -> list[str]:
    """The keys that fit the pattern, in their order."""
    return select_all((pattern,), keys)


def select_all(patterns: Sequence[str], keys: Iterable[str]) -> list[str]:
    """The keys that fit any of the patterns, in their order."""
    exact: set[str] = set()
    globs: list[re.Pattern[str]] = []
    for pattern in patterns:
        if has_wildcards(pattern):
            globs.append(_compiled(pattern))
        else:
            exact.update(unfold(pattern))
    return [k for k in keys if k in exact or any(g.fullmatch("." + k) for g in globs)]


def has_wildcards(pattern: str) -> bool:
    """Whether the pattern holds ``*``, ``**`` or an index, so that only keys can say what it stands for."""
    return any(s is None or any(isinstance(a, Star | Index) for a in s) for s in parse(pattern))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    segments = parse(pattern)
    if sum(s is None for s in segments) > MAX_DEEP:
        raise PatternError(f"pattern `{printable(pattern)}` has more than {MAX_DEEP} `**`")
    return re.compile("".join(map(_regex, segments)))


def _regex(segment: Segment) -> str:
    if segment is None:
        return r"(?:\.[^.]*)*"
    return r"\." + "".join(map(_atom_regex, segment))


def _atom_regex(atom: str | Index | Group | Star) -> str:
    if isinstance(atom, str):
        return re.escape(atom)
    if isinstance(atom, Star):
        return "[^.]*"
    if isinstance(atom, Index):
        if atom.within or atom.offset:
            raise PatternError(
                f"`{{{atom.name}...}}` with an offset or `:{spans_text(atom.within)}` is for renames"
            )
        return _NUMBER
    return "(?:" + "|".join(re.escape(t) for t in atom.texts()) + ")"
