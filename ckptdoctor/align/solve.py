"""Assignment and its certificate: which pairs are forced, which compete.

Works on ids and scores only. An assignment of best total score is found per connected component;
a pair is certain when every other complete assignment without it scores lower by the margin
(the cheapest alternating cycle or path through the pair, by shortest paths over score losses).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

Edges = Mapping[tuple[int, int], float]
_BIG = 1e9
_EXACT_SIZE = 90  # cubic certificate up to here, strongly connected components beyond
_LARGEST = 1000  # so many rivals of one another take a minute, and ten times as many a day: nothing is sure
_SLACK = 1.0


@dataclass(frozen=True)
class Solution:
    """``pairs`` source -> target; ``loss`` of the best alternative without the pair; ``rivals``."""

    pairs: dict[int, int] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)  # by source id
    rivals: dict[int, list[tuple[int, float]]] = field(default_factory=dict)  # target -> [(source, score)]


def solve(edges: Edges, null: float, cut: float = 5.0) -> Solution:
    """Best assignment of sources to targets; leaving one out on either side costs ``-null``."""
    kept = _prune(edges, cut)
    solution = Solution()
    for component in _components(kept):
        _solve_component(component, null, solution)
    for (s, t), score in kept.items():
        solution.rivals.setdefault(t, []).append((s, score))
    for rows in solution.rivals.values():
        rows.sort(key=lambda row: -row[1])
    return solution


def _prune(edges: Edges, cut: float) -> dict[tuple[int, int], float]:
    best_s: dict[int, float] = defaultdict(lambda: -_BIG)
    best_t: dict[int, float] = defaultdict(lambda: -_BIG)
    for (s, t), score in edges.items():
        best_s[s] = max(best_s[s], score)
        best_t[t] = max(best_t[t], score)
    return {(s, t): v for (s, t), v in edges.items() if v > best_s[s] - cut or v > best_t[t] - cut}


def _components(edges: Edges) -> list[dict[tuple[int, int], float]]:
    parent: dict[tuple[str, int], tuple[str, int]] = {}

    def find(x: tuple[str, int]) -> tuple[str, int]:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for s, t in edges:
        parent[find(("s", s))] = find(("t", t))
    groups: dict[tuple[str, int], dict[tuple[int, int], float]] = defaultdict(dict)
    for (s, t), score in edges.items():
        groups[find(("s", s))][s, t] = score
    return list(groups.values())


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
    cost = _padded(edges, sources, targets, null)
    column_of, slack = hungarian(cost)
    if n <= _EXACT_SIZE:
        losses = _cycle_losses(cost, column_of, len(sources))
    else:
        losses = _component_losses(slack, column_of, len(sources))
    for i, s in enumerate(sources):
        j = column_of[i]
        if j < len(targets) and (s, targets[j]) in edges:
            out.pairs[s], out.loss[s] = targets[j], losses[i]
    assert n == len(cost)


def _leave_open(edges: Edges, null: float, out: Solution) -> None:
    """Some pair for each, the best first; none of them is certain."""
    taken: set[int] = set()
    for (s, t), value in sorted(edges.items(), key=lambda row: (-row[1], row[0])):
        if value > null and s not in out.pairs and t not in taken:
            taken.add(t)
            out.pairs[s], out.loss[s] = t, 0.0


def _padded(edges: Edges, sources: list[int], targets: list[int], null: float) -> list[list[float]]:
    """Square cost matrix; dummy columns and rows leave a source or a target out at ``null`` a pair."""
    ns, nt = len(sources), len(targets)
    cost = [[0.0] * (ns + nt) for _ in range(ns + nt)]
    for i, s in enumerate(sources):
        row = cost[i]
        for j, t in enumerate(targets):
            score = edges.get((s, t))
            row[j] = _BIG if score is None else -score
        for j in range(nt, nt + ns):
            row[j] = -null / 2 if j == nt + i else _BIG
    for i in range(ns, ns + nt):
        row = cost[i]
        for j in range(nt):
            row[j] = -null / 2 if i - ns == j else _BIG
    return cost


def hungarian(cost: list[list[float]]) -> tuple[list[int], list[list[float]]]:
    """Columns of a minimal assignment of a square matrix, and the slack of every entry.

    Shortest augmenting paths with potentials (Jonker and Volgenant 1987).
    """
    n = len(cost)
    u, v = [0.0] * (n + 1), [0.0] * (n + 1)
    match, way = [0] * (n + 1), [0] * (n + 1)
    for i in range(1, n + 1):
        match[0], j0 = i, 0
        minv = [_BIG * 10] * (n + 1)
        used, free = [0], list(range(1, n + 1))
        while True:
            i0, delta, j1 = match[j0], _BIG * 10, 0
            row, ui = cost[i0 - 1], u[i0]
            for j in free:
                least = minv[j]
                cur = row[j - 1] - ui - v[j]
                if cur < least:
                    minv[j], way[j] = cur, j0
                    least = cur
                if least < delta:
                    delta, j1 = least, j
            if delta:  # among equal scores most steps cost nothing
                for j in used:
                    u[match[j]] += delta
                    v[j] -= delta
                for j in free:
                    minv[j] -= delta
            j0 = j1
            free.remove(j0)
            used.append(j0)
            if match[j0] == 0:
                break
        while j0:
            j1 = way[j0]
            match[j0] = match[j1]
            j0 = j1
    columns = [0] * n
    for j in range(1, n + 1):
        columns[match[j] - 1] = j - 1
    slack = [[cost[i][j] - u[i + 1] - v[j + 1] for j in range(n)] for i in range(n)]
    return columns, slack


def _cycle_losses(cost: list[list[float]], column_of: list[int], rows: int) -> list[float]:
    """Loss of the cheapest alternating cycle through each row's pair (Floyd-Warshall on losses)."""
    n = len(cost)
    dist = [[cost[i][column_of[j]] - cost[i][column_of[i]] for j in range(n)] for i in range(n)]
    for i in range(n):
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
    return [dist[i][i] for i in range(rows)]


def _component_losses(slack: list[list[float]], column_of: list[int], rows: int) -> list[float]:
    """For large components: a pair is certain when it lies on no alternating cycle of cheap edges.

    Conservative: a cycle that loses less than the margin has only edges of less slack than the margin.
    """
    import networkx as nx

    owner = {j: i for i, j in enumerate(column_of)}
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(slack)))
    for i, row in enumerate(slack):
        for j, value in enumerate(row):
            if value < _SLACK and owner[j] != i:
                graph.add_edge(i, owner[j])
    certain = {next(iter(c)) for c in nx.strongly_connected_components(graph) if len(c) == 1}
    return [_SLACK if i in certain else 0.0 for i in range(rows)]
