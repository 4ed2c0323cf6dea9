"""Pairs of units: candidates by shape, evidence, assignment, certificate, and a second round."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from ckptdoctor.align.evidence import EXCLUDED, MARGIN, Score, Scorer
from ckptdoctor.align.reporter import Reporter
from ckptdoctor.align.sides import Side, followed, prepare
from ckptdoctor.align.solve import Known, Solution, solve
from ckptdoctor.align.template import Templates, compress
from ckptdoctor.align.units import Unit

Scores = dict[tuple[int, int], float]

NULL = -0.5  # a pair below this explains less than leaving both out
SOME = 0.75  # what a forced pair needs while other keys are left over
HOST = 1.5  # batch norms of one convolution
HALF = 0.5
NEIGHBOUR = 1.0
ONLY = "the only one of these shapes on either side"  # the reason of a forced pair
_LARGE_CLASS = 120
_HUGE_CLASS = 1000
_MANY_KIN = 40  # siblings beyond which they say nothing of each other
_SMALL = 1500  # units up to which everything can be matched one by one


@dataclass
class Matching:
    """Result on units: certain pairs, open ones with their candidates, and what found no partner."""

    certain: dict[int, int] = field(default_factory=dict)  # target index -> source index
    reasons: dict[int, tuple[str, ...]] = field(default_factory=dict)
    open: dict[int, list[int]] = field(default_factory=dict)  # target index -> source candidates
    lonely_targets: list[int] = field(default_factory=list)
    lonely_sources: list[int] = field(default_factory=list)
    # templates that match but repeat differently: source index, its count, target index, its count
    uneven: list[tuple[int, int, int, int]] = field(default_factory=list)


def match_units(
    sources: Sequence[Unit], targets: Sequence[Unit], ordered: bool, reporter: Reporter | None = None
) -> Matching:
    """Match units of equal shapes; never decides by registration order alone.

    Repeated blocks are matched once. When the two sides repeat differently (one keeps its blocks in
    chunks, say), everything is matched one by one, as far as the size allows.
    """
    mine, theirs = compress(sources), compress(targets)
    matching = _match(mine.shown, theirs.shown, ordered, reporter)
    folded = len(mine.shown) < len(sources) or len(theirs.shown) < len(targets)
    if folded and not _evenly(matching, mine, theirs) and max(len(sources), len(targets)) <= _SMALL:
        single = _match(sources, targets, ordered, reporter)
        single.uneven = [
            row for row in _uneven(matching, mine, theirs) if _unsettled(single, row, mine, theirs)
        ]
        return single
    return _expand(matching, mine, theirs) if folded else matching


def _uneven(matching: Matching, mine: Templates, theirs: Templates) -> list[tuple[int, int, int, int]]:
    """Templates that match (or may) but repeat differently often."""
    pairs = [(t, s) for t, s in matching.certain.items()]
    pairs += [
        (t, cs[0])
        for t, cs in matching.open.items()
        if all(len(mine.instances[c]) != len(theirs.instances[t]) for c in cs)
    ]
    counted = [(s, len(mine.instances[s]), t, len(theirs.instances[t])) for t, s in pairs]
    return [row for row in counted if row[1] != row[3]]


def _unsettled(single: Matching, row: tuple[int, int, int, int], mine: Templates, theirs: Templates) -> bool:
    """Whether matching one by one left blocks of these templates over."""
    taken = set(single.certain.values())
    return any(u.index not in taken for u in mine.instances[row[0]]) or any(
        v.index not in single.certain for v in theirs.instances[row[2]]
    )


def _evenly(matching: Matching, mine: Templates, theirs: Templates) -> bool:
    """Whether every template found a template with as many blocks, or nothing is left to find."""
    even = all(
        len(theirs.instances[t]) == len(mine.instances[s]) for t, s in matching.certain.items()
    ) and all(
        len(theirs.instances[t]) == len(mine.instances[c]) for t, cs in matching.open.items() for c in cs
    )
    repeated = any(len(theirs.instances[t]) > 1 for t in matching.lonely_targets) or any(
        len(mine.instances[s]) > 1 for s in matching.lonely_sources
    )
    return even and not (repeated and matching.lonely_targets and matching.lonely_sources)


def _expand(matching: Matching, mine: Templates, theirs: Templates) -> Matching:
    """Pair the blocks of matched templates by rank; templates of unequal length stay open."""
    out = Matching()
    out.uneven = _uneven(matching, mine, theirs)
    for t, s in matching.certain.items():
        many_t, many_s = theirs.instances[t], mine.instances[s]
        if len(many_t) != len(many_s):
            continue
        for v, u in zip(many_t, many_s, strict=True):
            out.certain[v.index] = u.index
            out.reasons[v.index] = matching.reasons.get(t, ())
    for t, candidates in matching.open.items():
        many_t = theirs.instances[t]
        fitting = [mine.instances[c] for c in candidates if len(mine.instances[c]) == len(many_t)]
        for i, v in enumerate(many_t):
            out.open[v.index] = [many[i].index for many in fitting]
    out.open = {t: cs for t, cs in out.open.items() if cs}
    taken = set(out.certain.values()) | {cs[0] for cs in out.open.values()}
    out.lonely_sources = [u.index for m in mine.instances.values() for u in m if u.index not in taken]
    done = set(out.certain) | set(out.open)
    out.lonely_targets = [v.index for m in theirs.instances.values() for v in m if v.index not in done]
    return out


def _match(
    sources: Sequence[Unit], targets: Sequence[Unit], ordered: bool, reporter: Reporter | None
) -> Matching:
    a, b = prepare(sources, ordered), prepare(targets, True)
    edges = _edges(a, b)
    known: Known = {}  # much is the same from one time to the next
    around = _Around(a, b)
    scores = {pair: s.total for pair, s in edges.items()}
    first = _certain(solve(scores, NULL, known=known))
    for _ in range(2):
        boosted = around.added(scores, first)
        second = _certain(solve(boosted, NULL, known=known))
        if second == first:
            break
        first = second
    final = solve(around.added(scores, first), NULL, known=known)
    positive = {pair: s.positive for pair, s in edges.items()}
    plain = solve(around.added(positive, first), NULL, known=known)
    matching = _result(a, b, edges, final, plain)
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
    certain_s = set(matching.certain.values())
    free_s = {u.index: u for u in a.units if u.index not in certain_s}
    free_t = {v.index: v for v in b.units if v.index not in matching.certain}
    by_shape_s, by_shape_t = _by_exact(free_s.values()), _by_exact(free_t.values())
    forced = {
        ts[0]: by_shape_s[shape][0]
        for shape, ts in by_shape_t.items()
        if len(ts) == 1 and len(by_shape_s.get(shape, ())) == 1 and (by_shape_s[shape][0], ts[0]) in edges
    }
    # Roles that exclude each other (q and k) are no pair, however few are left.
    forced = {t: s for t, s in forced.items() if edges[s, t].positive - edges[s, t].total < EXCLUDED}
    resized = _resized(free_s.values(), free_t.values())
    complete = len(forced) + resized == len(free_t) == len(free_s) or (
        not resized and _counts(by_shape_s) == _counts(by_shape_t)
    )
    for t, s in forced.items():
        if complete or edges[s, t].total >= SOME:
            matching.certain[t] = s
            matching.reasons[t] = (*edges[s, t].reasons, ONLY)
            matching.open.pop(t, None)
    matching.lonely_targets = [t for t in matching.lonely_targets if t not in matching.certain]
    taken = set(matching.certain.values())
    open_sources = {c for cs in matching.open.values() for c in cs[:1]}
    matching.lonely_sources = [u.index for u in a.units if u.index not in taken | open_sources]


def _resized(sources: Iterable[Unit], targets: Iterable[Unit]) -> int:
    """Left-over units that have one name on both sides and another shape: a new head, say.

    They are each other's, though no repair keeps their values; so no pair can be meant for them.
    """
    mine = {u.path: u for u in sources}
    pairs = [(mine[v.path], v) for v in targets if v.path in mine and not v.bare]
    return sum(set(u.leaves) == set(v.leaves) and u.exact != v.exact for u, v in pairs)


def _by_exact(units: Iterable[Unit]) -> dict[object, list[int]]:
    found: dict[object, list[int]] = defaultdict(list)
    for unit in units:
        found[unit.exact].append(unit.index)
    return found


def _counts(by_shape: dict[object, list[int]]) -> dict[object, int]:
    """How many units of each shape: equal on both sides where every one has its partner."""
    return {shape: len(found) for shape, found in by_shape.items()}


@dataclass
class _Class:
    """Units of one key, and of a large class which have the same numbers or the same name."""

    units: list[Unit] = field(default_factory=list)
    by_numbers: dict[tuple[int, ...], list[Unit]] = field(default_factory=lambda: defaultdict(list))
    by_path: dict[str, list[Unit]] = field(default_factory=lambda: defaultdict(list))

    def candidates(self, v: Unit) -> list[Unit]:
        """All of the class; in a very large one those with the same numbers, in a huge one the same name."""
        if len(self.units) <= _LARGE_CLASS:
            return self.units
        if not self.by_path:
            for unit in self.units:
                self.by_numbers[unit.name.numbers].append(unit)
                self.by_path[unit.path].append(unit)
        near, named = self.by_numbers.get(v.name.numbers, []), self.by_path.get(v.path, [])
        if len(near) > _HUGE_CLASS:  # to compare each with each takes hours, and a sample proves nothing
            return named
        return near + [u for u in named if u not in near] or self.units[:_LARGE_CLASS]


def _edges(a: Side, b: Side) -> dict[tuple[int, int], Score]:
    by_class: dict[object, _Class] = defaultdict(_Class)
    for unit in a.units:
        by_class[unit.key].units.append(unit)
    found: dict[tuple[int, int], Score] = {}
    scorer = Scorer(a, b)
    for v in b.units:
        for u in by_class[v.key].candidates(v) if v.key in by_class else ():
            s = scorer.score(u, v)
            if s is not None:
                found[u.index, v.index] = s
    return found


def _certain(solution: Solution) -> dict[int, int]:
    return {s: t for s, t in solution.pairs.items() if solution.loss[s] >= MARGIN}


class _Kin:
    """The units of a side by what is above them."""

    def __init__(self, side: Side, above: Callable[[Unit], Hashable]) -> None:
        self.parent = {u.index: above(u) for u in side.units}
        self.members: dict[Hashable, list[int]] = defaultdict(list)
        for index, parent in self.parent.items():
            self.members[parent].append(index)

    def siblings(self, index: int) -> list[int]:
        """The others; none of a flat list of thousands, which say nothing of each other."""
        found = self.members[self.parent[index]]
        return [i for i in found if i != index] if len(found) <= _MANY_KIN + 1 else []


class _Around:
    """What certain pairs say of their neighbours: same parent on both sides."""

    def __init__(self, a: Side, b: Side) -> None:
        self.hosts, self.hosts_t = a.hosts, followed(b)
        self.kin = [(_Kin(a, above), _Kin(b, above)) for above in (_module_above, _words_above)]

    def added(self, scores: Scores, anchors: dict[int, int]) -> Scores:
        """The scores with what these pairs say for each: the share of decided siblings that stay siblings."""
        boosted = dict(scores)
        for mine, theirs in self.kin:
            votes: dict[int, tuple[list[int], Counter[Hashable]]] = {}
            for (s, t), value in scores.items():
                if s not in votes:
                    decided = [anchors[m] for m in mine.siblings(s) if m in anchors]
                    votes[s] = decided, Counter(theirs.parent[d] for d in decided)
                decided, homes = votes[s]
                here = homes[theirs.parent[t]] if decided else 0
                if here:
                    shared = (here - (t in decided)) / len(decided)
                    boosted[s, t] = max(boosted[s, t], value + NEIGHBOUR * shared)
        for s, t in scores if self.hosts else ():
            host_s, host_t = self.hosts.get(s), self.hosts_t.get(t)
            if host_s is not None and host_t is not None and anchors.get(host_s) == host_t:
                boosted[s, t] += HOST
        return boosted


def _module_above(unit: Unit) -> Hashable:
    return unit.path.rpartition(".")[0]


def _words_above(unit: Unit) -> Hashable:
    """For flat names: `enc1_conv_a` and `enc1_bn_a` have `enc1` in common."""
    return unit.name.flat[:-1]


def _result(
    a: Side, b: Side, edges: dict[tuple[int, int], Score], solution: Solution, plain: Solution
) -> Matching:
    """Certain is what wins by the margin, and what also wins without the words against its rivals.

    A name that excludes a rival proves little for the pair that is then left.
    """
    out = Matching()
    partner = {t: s for s, t in solution.pairs.items()}
    for v in b.units:
        s = partner.get(v.index)
        sure = s is not None and solution.loss[s] >= MARGIN
        if sure and s is not None and _stands(plain, s, v.index):
            out.certain[v.index] = s
            out.reasons[v.index] = edges[s, v.index].reasons
        elif s is not None:
            out.open[v.index] = _choices(s, solution.rivals.get(v.index, []))
        else:
            out.lonely_targets.append(v.index)
    used = set(solution.pairs)
    out.lonely_sources = [u.index for u in a.units if u.index not in used]
    return out


def _stands(plain: Solution, s: int, t: int) -> bool:
    return plain.pairs.get(s) == t and plain.loss[s] >= HALF


def _choices(best: int, rivals: list[tuple[int, float]]) -> list[int]:
    others = [s for s, _ in rivals if s != best]
    return [best, *others[:7]]
