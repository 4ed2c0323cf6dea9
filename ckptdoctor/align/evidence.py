"""Scores of candidate pairs, each part with its reason in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ckptdoctor.align.names import Token, soft_groups
from ckptdoctor.align.sides import Side, last_word
from ckptdoctor.align.units import Unit

# One scale for all evidence; a pair is safe when the best alternative loses by MARGIN.
MARGIN = 1.0
EXACT = 4.0  # the same path
ROLE = 2.0  # both are `q`, both are the shortcut
SLOT = 3.0  # both are the first norm of their block
STRUCTURE = 3.0  # below the only ancestors with these shapes
ORDINAL = 3.0  # the same numbers
RANK = 2.0  # the same rank among their likes
WORDS = 3.0  # all words in common
LAST_WORD = 0.75
SHAPE = 3.0  # against a pair that would have to be transposed
EXCLUDED = 12.0  # roles that exclude each other: never claimed
FEW_WORDS = 0.3


@dataclass(frozen=True, slots=True)
class Score:
    """Total, the total without what speaks against the pair by name alone, and the reasons."""

    total: float
    positive: float
    reasons: tuple[str, ...]


class _Likeness(NamedTuple):
    """What a pair has in common wherever its two units stand."""

    words: float
    last: float
    role: float
    against: float
    turned: bool
    reasons: tuple[str, ...]


class Scorer:
    """Scores pairs of units of two sides; what does not hang on places is found once for equal units."""

    def __init__(self, a: Side, b: Side) -> None:
        self.a = a
        self.b = b
        self._known: dict[tuple[int, int], _Likeness | None] = {}

    def score(self, u: Unit, v: Unit) -> Score | None:
        """How well source unit ``u`` explains target unit ``v``; None when roles forbid it."""
        a, b = self.a, self.b
        kinds = a.sorts[u.index], b.sorts[v.index]
        if kinds not in self._known:
            self._known[kinds] = _likeness(a, u, b, v)
        like = self._known[kinds]
        if like is None:
            return None
        reasons: list[str] = []
        total = 0.0
        if u.path == v.path and _same_numbering(a, b, u):
            total += EXACT
            reasons.append("same name")
        total += like.words
        total += like.last
        reasons += like.reasons
        total += like.role - SHAPE * like.turned + _structure_score(a, u, b, v, reasons)
        total += _ordinal_score(a, u, b, v, reasons, like.words)
        if a.ordered and b.ordered and a.order_rank[u.index] == b.order_rank[v.index]:
            reasons.append("same place in the order of its shape")
        return Score(total - like.against, total, tuple(reasons))


def _likeness(a: Side, u: Unit, b: Side, v: Unit) -> _Likeness | None:
    kind_u, kind_v = a.kinds[u.index], b.kinds[v.index]
    turned = _turned(u, v)
    if turned is None or (kind_u and kind_v and kind_u != kind_v):
        return None
    words = _word_score(a.bags[u.index], b.bags[v.index])
    reasons = ["names agree"] if words > 1.2 else []
    role, against = _role_score(a, u, b, v, reasons)
    last = last_word(u)
    same = LAST_WORD if last and last == last_word(v) else 0.0
    return _Likeness(words, same, role, against, turned, tuple(reasons))


def _same_numbering(a: Side, b: Side, u: Unit) -> bool:
    """An index is a name only where both lists have the same indices; else it may have shifted.

    A number inside a word (`bn2`) is part of the word.
    """
    steps, at = u.name.steps, 0
    for segment in u.name.concepts:
        lone = len(segment) == 1 and isinstance(segment[0], int)
        if lone and a.numbered.get(steps[:at]) != b.numbered.get(steps[:at]):
            return False
        at += len(segment)
    return True


def _turned(u: Unit, v: Unit) -> bool | None:
    """Whether a matrix would have to be transposed; None where that makes no sense (convolutions)."""
    turned = False
    for role, leaf in v.leaves.items():
        mine = u.leaves.get(role)
        if mine is None:
            continue
        x, y = [d for d in mine.shape if d != 1], [d for d in leaf.shape if d != 1]
        if x != y and len(x) == len(y) == 2:
            if len(mine.shape) != 2 or len(leaf.shape) != 2:
                return None
            turned = True
    return turned


def _word_score(bu: dict[Token, float], bv: dict[Token, float]) -> float:
    total = sum(bu.values()) + sum(bv.values())
    common = sum(min(w, bv[t]) for t, w in bu.items() if t in bv)
    return WORDS * 2 * common / total if total else 0.0


def _role_score(a: Side, u: Unit, b: Side, v: Unit, reasons: list[str]) -> tuple[float, float]:
    """What roles say for the pair, and what they say against it."""
    total = against = 0.0
    values_u, values_v, soft = a.values[u.index], b.values[v.index], soft_groups()
    for group, value in values_u.items():
        other = values_v.get(group)
        if other is None:
            continue
        if other == value:
            total += ROLE
            reasons.append(f"both are `{value}`")
        else:
            against += soft.get(group, EXCLUDED)
    skip_u, skip_v = "skip" in a.bags[u.index], "skip" in b.bags[v.index]
    if skip_u or skip_v:
        total += ROLE if skip_u == skip_v else -ROLE
        if skip_u == skip_v:
            reasons.append("both are the shortcut")
    slot_u, slot_v = a.slots.get(u.index), b.slots.get(v.index)
    if slot_u and slot_v and slot_u.partition(" ")[2] == slot_v.partition(" ")[2]:
        if slot_u != slot_v:
            return total - SLOT, against
        total += SLOT
        reasons.append(f"both are the {slot_u.partition(' ')[0]} norm of their block")
    return total, against


def _structure_score(a: Side, u: Unit, b: Side, v: Unit, reasons: list[str]) -> float:
    mine, theirs = a.scopes[u.index], b.scopes[v.index]
    rank_u, rank_v = a.scope_rank[u.index], b.scope_rank[v.index]
    best = 0.0
    for h in mine:
        n = a.scope_count[h]
        if n != b.scope_count.get(h, 0):
            continue
        if h not in theirs:
            if n == 1:
                return -STRUCTURE
            continue
        if n == 1:
            best = STRUCTURE
        elif h in rank_u and h in rank_v:
            if rank_u[h] != rank_v[h]:
                return -STRUCTURE
            best = STRUCTURE
        else:
            best = max(best, STRUCTURE / n)
    for h in theirs:
        if h not in mine and b.scope_count[h] == 1 == a.scope_count.get(h, 0):
            return -STRUCTURE
    if best == STRUCTURE:
        reasons.append("in the part with the same shapes")
    return best


def _ordinal_score(a: Side, u: Unit, b: Side, v: Unit, reasons: list[str], words: float) -> float:
    if _counted(u) != _counted(v) and words < FEW_WORDS:
        return 0.0  # `param_12`: such numbers only count tensors
    local = _local_score(a, u, b, v, reasons)
    ranks_u, ranks_v = a.ranks[u.index], b.ranks[v.index]
    if ranks_u and ranks_u == ranks_v:
        reasons.append("same numbers")
        return ORDINAL + max(local, 0.0)
    if _within(ranks_u, ranks_v) or _within(ranks_v, ranks_u):
        reasons.append("same numbers, one level more")
        return RANK + max(local, 0.0)
    fam_u, fam_v = a.family[u.index], b.family[v.index]
    like = _ends(u) == _ends(v) or a.varying[u.index] == b.varying[v.index]
    if fam_u == fam_v and fam_u[1] > 1 and ranks_u and ranks_v and like:
        reasons.append(f"number {fam_u[0] + 1} of {fam_u[1]} alike")
        return RANK + local
    common = _common_ranks(ranks_u, ranks_v)
    return 0.6 * common + local


def _ends(unit: Unit) -> bool:
    """Whether it is a number that tells the unit from its siblings; else the numbers count blocks."""
    return bool(unit.name.steps) and isinstance(unit.name.steps[-1], int)


def _counted(unit: Unit) -> bool:
    return unit.bare and bool(unit.name.steps) and isinstance(unit.name.steps[-1], int)


def _local_score(a: Side, u: Unit, b: Side, v: Unit, reasons: list[str]) -> float:
    """Same rank below the innermost ancestor that both have in common."""
    mine, theirs = a.local.get(u.index), b.local.get(v.index)
    if not mine or not theirs:
        return 0.0
    for h in reversed(a.scopes[u.index]):
        x, y = mine.get(h), theirs.get(h)
        if x is not None and y is not None and x[1] == y[1]:
            if x[0] == y[0]:
                reasons.append(f"number {x[0] + 1} of {x[1]} in its block")
                return RANK
            return -RANK
    return 0.0


def _within(short: tuple[tuple[int, int], ...], long: tuple[tuple[int, int], ...]) -> bool:
    """Whether the ranks of one path occur in order in the other, which counts at more levels."""
    rest = iter(long)
    return 1 < len(short) == len(long) - 1 and all(r in rest for r in short)


def _common_ranks(x: tuple[tuple[int, int], ...], y: tuple[tuple[int, int], ...]) -> int:
    count = 0
    for p, q in zip(x, y, strict=False):
        if p != q:
            break
        count += 1
    return count
