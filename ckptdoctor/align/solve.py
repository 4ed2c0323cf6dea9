"""Assignment and its certificate: which pairs are forced, which compete.

Works on ids and scores only. An assignment of best total score is found per connected component;
a pair is certain when every other complete assignment without it scores lower by the margin
(the cheapest alternating cycle or path through the pair, by shortest paths over score losses).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush

Edges = Mapping[tuple[int, int], float]
Row = list[tuple[int, float]]  # column and cost, of the entries that are there, by column
_BIG = 1e9
_EXACT_SIZE = 90  # cubic certificate up to here, strongly connected components beyond
_LARGEST = 1000  # so many rivals of one another take a minute, and ten times as many a day: nothing is sure
_SLACK = 1.0


@dataclass(frozen=True)
class Solution:
    """``pairs`` source -> target; ``loss`` of the best alternative without each; a target's ``rivals``."""

    pairs: dict[int, int] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)  # by source id
    edges: Edges = field(default_factory=dict)  # those that might have been

    @cached_property
    def rivals(self) -> dict[int, list[tuple[int, float]]]:
        """Target -> ``(source, score)``, the best first."""
        found: dict[int, list[tuple[int, float]]] = {}
        for (s, t), score in self.edges.items():
            found.setdefault(t, []).append((s, score))
        for rows in found.values():
            rows.sort(key=lambda row: -row[1])
        return found


Known = dict[tuple[tuple[tuple[int, int], float], ...], Solution]


def solve(edges: Edges, null: float, cut: float = 5.0, known: Known | None = None) -> Solution:
    """Best assignment of sources to targets; leaving one out on either side costs ``-null``.

    ``known`` keeps what was found for a part of the edges, for later calls with the same ``null``.
    """
    kept = _prune(edges, cut)
    solution, known = Solution(edges=kept), {} if known is None else known
    for component in _components(kept):
        entries = tuple(component.items())
        if entries not in known:
            part = known[entries] = Solution()
            _solve_component(component, null, part)
        solution.pairs.update(known[entries].pairs)
        solution.loss.update(known[entries].loss)
    return solution


def _prune(edges: Edges, cut: float) -> dict[tuple[int, int], float]:
    best_s: dict[int, float] = {}
    best_t: dict[int, float] = {}
    for (s, t), score in edges.items():
        if score > best_s.get(s, -_BIG):
            best_s[s] = score
        if score > best_t.get(t, -_BIG):
            best_t[t] = score
    return {(s, t): v for (s, t), v in edges.items() if v > best_s[s] - cut or v > best_t[t] - cut}


def _components(edges: Edges) -> list[dict[tuple[int, int], float]]:
    by_s: dict[int, list[int]] = defaultdict(list)
    by_t: dict[int, list[int]] = defaultdict(list)
    for s, t in edges:
        by_s[s].append(t)
        by_t[t].append(s)
    part: dict[int, int] = {}  # of a source
    count = 0
    for first in by_s:
        reached = [] if first in part else [first]
        count += len(reached)
        while reached:
            s = reached.pop()
            if s not in part:
                part[s] = count - 1
                for t in by_s[s]:
                    reached += by_t.pop(t, ())
    groups: list[dict[tuple[int, int], float]] = [{} for _ in range(count)]
    for (s, t), score in edges.items():
        groups[part[s]][s, t] = score
    return groups


def _solve_component(edges: Edges, null: float, out: Solution) -> None:
    sources = sorted({s for s, _ in edges})
    targets = sorted({t for _, t in edges})
    if len(sources) == 1 and len(targets) == 1:
        s, t = sources[0], targets[0]
        if edges[s, t] > null:
            out.pairs[s], out.loss[s] = t, edges[s, t] - null
        return
    n = len(sources) + len(targets)
    if n > _LARGEST:
        _leave_open(edges, null, out)
        return
    rows = _padded(edges, sources, targets, null)
    column_of, u, v = hungarian(rows)
    if n <= _EXACT_SIZE:
        losses = _cycle_losses(rows, column_of, len(sources))
    else:
        losses = _component_losses(rows, u, v, column_of, len(sources))
    for i, s in enumerate(sources):
        j = column_of[i]
        if j < len(targets) and (s, targets[j]) in edges:
            out.pairs[s], out.loss[s] = targets[j], losses[i]
    assert n == len(rows)


def _leave_open(edges: Edges, null: float, out: Solution) -> None:
    """Some pair for each, the best first; none of them is certain."""
    taken: set[int] = set()
    for (s, t), value in sorted(edges.items(), key=lambda row: (-row[1], row[0])):
        if value > null and s not in out.pairs and t not in taken:
            taken.add(t)
            out.pairs[s], out.loss[s] = t, 0.0


def _padded(edges: Edges, sources: list[int], targets: list[int], null: float) -> list[Row]:
    """Square cost matrix; dummy columns and rows leave a source or a target out at ``null`` a pair."""
    ns, nt = len(sources), len(targets)
    place = {t: j for j, t in enumerate(targets)}
    real: list[Row] = [[] for _ in sources]
    at = dict(zip(sources, real, strict=True))
    for (s, t), score in edges.items():
        at[s].append((place[t], -score))
    for i, row in enumerate(real):
        row.sort()
        row.append((nt + i, -null / 2))
    dummies = [(j, 0.0) for j in range(nt, nt + ns)]
    return real + [[(j, -null / 2), *dummies] for j in range(nt)]


def hungarian(rows: list[Row]) -> tuple[list[int], list[float], list[float]]:
    """Columns of a minimal assignment of a square matrix, and the potentials of its rows and columns.

    Shortest augmenting paths with potentials (Jonker and Volgenant 1987), over the entries that are there;
    with them there has to be an assignment.
    """
    n = len(rows)
    u, v = [0.0] * n, [0.0] * n
    owner = [-1] * n  # row of a column
    for i in range(n):
        way: dict[int, int] = {}  # column -> the column whose row reached it, -1 for this row itself
        least = [_BIG] * n  # what a column takes; less than anything once it is used
        nearest: list[tuple[float, int]] = []  # a heap, of which some have become nearer since
        used: list[int] = []
        at, row = -1, i
        while row >= 0:
            base = u[row]
            for j, cost in rows[row]:
                takes = cost - base - v[j]
                if takes < least[j]:
                    least[j], way[j] = takes, at
                    heappush(nearest, (takes, j))
            delta, best = heappop(nearest)
            while delta != least[best]:
                delta, best = heappop(nearest)
            least[best] = -_BIG
            if delta:  # among equal scores most steps cost nothing
                u[i] += delta
                for j in used:
                    u[owner[j]] += delta
                    v[j] -= delta
                free = [j for j in way if least[j] > -_BIG]
                for j in free:
                    least[j] -= delta
                nearest = [(least[j], j) for j in free]
                heapify(nearest)
            at, row = best, owner[best]
            used.append(best)
        while at >= 0:
            before = way[at]
            owner[at] = i if before < 0 else owner[before]
            at = before
    columns = [0] * n
    for j, i in enumerate(owner):
        columns[i] = j
    return columns, u, v


def _cycle_losses(rows: list[Row], column_of: list[int], count: int) -> list[float]:
    """Loss of the cheapest alternating cycle through each row's pair (Floyd-Warshall on losses)."""
    n = len(rows)
    dist: list[list[float]] = []
    for i, entries in enumerate(rows):
        cost = [_BIG] * n
        for j, value in entries:
            cost[j] = value
        own = cost[column_of[i]]
        dist.append([cost[column_of[j]] - own for j in range(n)])
        dist[i][i] = _BIG
    for k in range(n):
        via = dist[k]
        for i in range(n):
            base = dist[i][k]
            if base < _BIG / 2:
                row = dist[i]
                for j in range(n):
                    if base + via[j] < row[j]:
                        row[j] = base + via[j]
    return [dist[i][i] for i in range(count)]


def _component_losses(
    rows: list[Row], u: list[float], v: list[float], column_of: list[int], count: int
) -> list[float]:
    """For large components: a pair is certain when it lies on no alternating cycle of cheap edges.

    Conservative: a cycle that loses less than the margin has only edges of less slack than the margin.
    """
    owner = {j: i for i, j in enumerate(column_of)}
    cheap = [
        [owner[j] for j, cost in row if cost - u[i] - v[j] < _SLACK and owner[j] != i]
        for i, row in enumerate(rows)
    ]
    certain = on_no_cycle(cheap)
    return [_SLACK if i in certain else 0.0 for i in range(count)]


def on_no_cycle(below: list[list[int]]) -> set[int]:
    """The nodes that are a strongly connected component by themselves."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(below)))
    graph.add_edges_from((node, after) for node, found in enumerate(below) for after in found)
    return {next(iter(c)) for c in nx.strongly_connected_components(graph) if len(c) == 1}
