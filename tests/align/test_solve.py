"""The assignment and what it calls certain, beside all assignments that there are."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.align import align
from ckptdoctor.align.solve import hungarian, on_no_cycle, solve
from ckptdoctor.trees import ParamTree, TensorSpec

NULL = -0.5
# Few different values: equal scores are the hard case.
SQUARES = st.integers(1, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=n, max_size=n), min_size=n, max_size=n
    )
)


@given(SQUARES, st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4))))
def test_no_assignment_costs_less(cost: list[list[float]], gone: set[tuple[int, int]]) -> None:
    # The diagonal stays, so that there is an assignment.
    rows = [[(j, c) for j, c in enumerate(row) if i == j or (i, j) not in gone] for i, row in enumerate(cost)]
    columns, u, v = hungarian(rows)
    there = [dict(row) for row in rows]
    ways = [p for p in permutations(range(len(cost))) if all(j in there[i] for i, j in enumerate(p))]
    assert tuple(columns) in ways
    assert sum(there[i][j] for i, j in enumerate(columns)) == min(
        sum(there[i][j] for i, j in enumerate(p)) for p in ways
    )
    slack = [{j: c - u[i] - v[j] for j, c in row} for i, row in enumerate(rows)]
    assert all(value >= 0 for row in slack for value in row.values())
    assert all(slack[i][j] == 0 for i, j in enumerate(columns))


@given(st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=8, max_size=8))
def test_what_lies_on_a_cycle_is_found(below: list[list[int]]) -> None:
    reached = [set(found) for found in below]
    for _ in below:
        reached = [found.union(*(reached[j] for j in found)) for found in reached]
    # A way back to a place through itself alone is no other assignment.
    assert on_no_cycle([[j for j in found if j != i] for i, found in enumerate(below)]) == {
        i for i in range(8) if not any(i in reached[j] for j in reached[i] if j != i)
    }


@given(SQUARES)
def test_a_certain_pair_is_in_every_best_assignment(scores: list[list[float]]) -> None:
    n = len(scores)
    found = solve({(i, j): scores[i][j] for i in range(n) for j in range(n)}, NULL)
    totals = {p: sum(scores[i][j] for i, j in enumerate(p)) for p in permutations(range(n))}
    best = [p for p, total in totals.items() if total == max(totals.values())]
    for source, loss in found.loss.items():
        assert loss <= 0 or all(p[source] == found.pairs[source] for p in best)


def test_too_many_rivals_are_left_open() -> None:
    many = 600
    edges = {(i, j): 2.0 + (i == j) for i in range(many) for j in range(many) if abs(i - j) < 60}
    found = solve(edges, NULL)
    assert found.pairs == {i: i for i in range(many)}
    assert set(found.loss.values()) == {0.0}
    assert all(len(found.rivals[t]) > 1 for t in range(many))


def test_thousands_of_tensors_of_one_shape_and_unknown_names_are_not_claimed_and_not_compared_each() -> None:
    count = 1200
    source = {f"{_word(2 * i)}.weight": TensorSpec((8, 8)) for i in range(count)}
    target = {f"{_word(2 * i + 1)}.weight": TensorSpec((8, 8)) for i in range(count)}
    same = f"{_word(-1)}.weight"
    found = align(
        ParamTree({**source, same: TensorSpec((8, 8))}), ParamTree({**target, same: TensorSpec((8, 8))})
    )
    assert found.verdict in ("undecided", "incompatible")
    assert {m.target for m in found.matches.values() if m.status == "safe"} <= {same}


def _word(number: int) -> str:
    """A name without a number or a known word."""
    letters = []
    for _ in range(4):
        number, rest = divmod(number, 15)
        letters.append("bdfghjklmnprstz"[rest] + "aeiou"[rest % 5])
    return "x" + "".join(letters)
