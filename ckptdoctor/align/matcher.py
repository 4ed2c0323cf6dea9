"""Pairs of units: candidates by shape, evidence, assignment, certificate, and a second round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ckptdoctor.align.evidence import MARGIN, ORDER, Score, Side, prepare, score
from ckptdoctor.align.reporter import Reporter
from ckptdoctor.align.solve import Solution, solve
from ckptdoctor.align.units import Unit

NULL = -0.5  # a pair below this explains less than leaving both out
SOME = 0.75  # what a forced pair needs while other keys are left over
NEIGHBOUR = 1.0
_LARGE_CLASS = 120


@dataclass
class Matching:
    """Result on units: certain pairs, open ones with their candidates, and what found no partner."""

    certain: dict[int, int] = field(default_factory=dict)  # target index -> source index
    reasons: dict[int, tuple[str, ...]] = field(default_factory=dict)
    open: dict[int, list[int]] = field(default_factory=dict)  # target index -> source candidates
    lonely_targets: list[int] = field(default_factory=list)
    lonely_sources: list[int] = field(default_factory=list)


def match_units(
    sources: Sequence[Unit], targets: Sequence[Unit], ordered: bool, reporter: Reporter | None = None
) -> Matching:
    """Match units of equal shapes; never decides by registration order alone."""
    a, b = prepare(sources, ordered), prepare(targets, True)
    edges = _edges(a, b)
    scores = {pair: s.total for pair, s in edges.items()}
    first = _certain(_solve_all(a, b, scores))
    for _ in range(2):
        boosted = _with_neighbours(a, b, scores, first)
        second = _certain(_solve_all(a, b, boosted))
        if second == first:
            break
        first = second
    final = _solve_all(a, b, _with_neighbours(a, b, scores, first))
    matching = _result(a, b, edges, final)
    _force(matching, a, b, edges)
    if reporter is not None:
        _tell(reporter, matching, a, b, edges)
    return matching


def _tell(
    reporter: Reporter, matching: Matching, a: Side, b: Side, edges: dict[tuple[int, int], Score]
) -> None:
    names_a = {u.index: u.path for u in a.units}
    names_b = {v.index: v.path for v in b.units}
    for (s, t), scored in edges.items():
        reporter.candidate(names_b[t], names_a[s], scored.total, scored.reasons)
    for t, name in names_b.items():
        if t in matching.certain:
            reporter.decided(name, names_a[matching.certain[t]], matching.reasons.get(t, ()))
        elif t in matching.open:
            reporter.undecided(name, [names_a[s] for s in matching.open[t]])
        else:
            reporter.unmatched(name)


def _force(matching: Matching, a: Side, b: Side, edges: dict[tuple[int, int], Score]) -> None:
    """Pairs that are the only ones left of their shapes.

    Without a word for it such a pair is accepted only if then nothing is left over on either side:
    uniqueness counts over the whole pool.
    """
    free_s = {u.index: u for u in a.units} | {}
    for s in matching.certain.values():
        free_s.pop(s, None)
    free_t = {v.index: v for v in b.units if v.index not in matching.certain}
    by_shape_s, by_shape_t = _by_exact(free_s.values()), _by_exact(free_t.values())
    forced = {
        ts[0]: by_shape_s[shape][0]
        for shape, ts in by_shape_t.items()
        if len(ts) == 1 and len(by_shape_s.get(shape, ())) == 1 and (by_shape_s[shape][0], ts[0]) in edges
    }
    complete = len(forced) == len(free_t) == len(free_s)
    for t, s in forced.items():
        if complete or edges[s, t].total >= SOME:
            matching.certain[t] = s
            matching.reasons[t] = (*edges[s, t].reasons, "the only one of these shapes on either side")
            matching.open.pop(t, None)
    matching.lonely_targets = [t for t in matching.lonely_targets if t not in matching.certain]
    taken = set(matching.certain.values())
    open_sources = {c for cs in matching.open.values() for c in cs[:1]}
    matching.lonely_sources = [u.index for u in a.units if u.index not in taken | open_sources]


def _by_exact(units: Iterable[Unit]) -> dict[object, list[int]]:
    found: dict[object, list[int]] = defaultdict(list)
    for unit in units:
        found[unit.exact].append(unit.index)
    return found


def _edges(a: Side, b: Side) -> dict[tuple[int, int], Score]:
    by_class: dict[object, list[Unit]] = defaultdict(list)
    for unit in a.units:
        by_class[unit.key].append(unit)
    found: dict[tuple[int, int], Score] = {}
    for v in b.units:
        for u in _candidates(by_class.get(v.key, []), v):
            s = score(a, u, b, v)
            if s is not None:
                found[u.index, v.index] = s
    return found


def _candidates(units: list[Unit], v: Unit) -> list[Unit]:
    """All of the class; in a very large class only those with the same numbers or name."""
    if len(units) <= _LARGE_CLASS:
        return units
    near = [u for u in units if u.name.numbers == v.name.numbers or u.path == v.path]
    return near or units[:_LARGE_CLASS]


def _solve_all(a: Side, b: Side, scores: dict[tuple[int, int], float]) -> Solution:
    return solve(scores, NULL)


def _certain(solution: Solution) -> dict[int, int]:
    return {s: t for s, t in solution.pairs.items() if solution.loss[s] >= MARGIN}


def _with_neighbours(
    a: Side, b: Side, scores: dict[tuple[int, int], float], anchors: dict[int, int]
) -> dict[tuple[int, int], float]:
    """Add what certain pairs say of their neighbours: same parent on both sides."""
    parents_a, parents_b = _parents(a.units), _parents(b.units)
    kin_a, kin_b = _kin(parents_a), _kin(parents_b)
    boosted = dict(scores)
    for (s, t), value in scores.items():
        if anchors.get(s) == t:
            continue
        boosted[s, t] = value + NEIGHBOUR * _shared(
            kin_a[parents_a[s]] - {s}, kin_b[parents_b[t]] - {t}, anchors
        )
    return boosted


def _parents(units: Sequence[Unit]) -> dict[int, tuple[object, ...]]:
    return {u.index: u.name.flat[:-1] if u.name.flat else () for u in units}


def _kin(parents: dict[int, tuple[object, ...]]) -> dict[tuple[object, ...], set[int]]:
    kin: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for index, parent in parents.items():
        kin[parent].add(index)
    return kin


def _shared(mine: set[int], theirs: set[int], anchors: dict[int, int]) -> float:
    """Share of my decided siblings whose partners are siblings of the other unit."""
    if len(mine) > 40:
        return 0.0
    decided = [anchors[m] for m in mine if m in anchors]
    if not decided:
        return 0.0
    return sum(t in theirs for t in decided) / len(decided)


def _result(a: Side, b: Side, edges: dict[tuple[int, int], Score], solution: Solution) -> Matching:
    out = Matching()
    partner = {t: s for s, t in solution.pairs.items()}
    for v in b.units:
        s = partner.get(v.index)
        if s is not None and solution.loss[s] >= MARGIN:
            out.certain[v.index] = s
            out.reasons[v.index] = edges[s, v.index].reasons
        elif s is not None:
            out.open[v.index] = _choices(s, solution.rivals.get(v.index, []))
        else:
            out.lonely_targets.append(v.index)
    used = set(solution.pairs)
    out.lonely_sources = [u.index for u in a.units if u.index not in used]
    return out


def _choices(best: int, rivals: list[tuple[int, float]]) -> list[int]:
    others = [s for s, _ in rivals if s != best]
    return [best, *others[:7]]


__all__ = ["NULL", "ORDER", "Matching", "match_units"]
