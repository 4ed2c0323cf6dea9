"""The assignment and what it calls certain, beside all assignments that there are."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.align import align
from ckptdoctor.align.solve import hungarian, solve
from ckptdoctor.trees import ParamTree, TensorSpec

NULL = -0.5
# Few different values: equal scores are the hard case.
SQUARES = st.integers(1, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=n, max_size=n), min_size=n, max_size=n
    )
)


@given(SQUARES)
def test_no_assignment_costs_less(cost: list[list[float]]) -> None:
    columns, slack = hungarian(cost)
    least = min(sum(row[c] for row, c in zip(cost, p, strict=True)) for p in permutations(range(len(cost))))
    assert sorted(columns) == list(range(len(cost)))
    assert sum(row[c] for row, c in zip(cost, columns, strict=True)) == least
    assert all(value >= 0 for row in slack for value in row)
    assert all(slack[i][c] == 0 for i, c in enumerate(columns))


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
