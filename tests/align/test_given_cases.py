"""The real pairs of fixtures/: goals per tier, and never a wrong claim."""

from __future__ import annotations

import pytest

from benchmarks.cases import Case, read_cases
from benchmarks.scoring import Outcome, answer_of, judge
from ckptdoctor.align import align
from tests.align.pairs import FIXTURES

GIVEN = read_cases(FIXTURES / "cases")
HELD_OUT = read_cases(FIXTURES / "cases_extra")
MORE = [c for half in ("a", "b") for c in read_cases(FIXTURES / "cases_more" / half)]


def outcomes(cases: list[Case]) -> dict[str, Outcome]:
    return {c.name: judge(c, answer_of(align(c.source, c.target))) for c in cases if c.scored}


@pytest.fixture(scope="module")
def given() -> dict[str, Outcome]:
    return outcomes(GIVEN)


@pytest.fixture(scope="module")
def held_out() -> dict[str, Outcome]:
    return outcomes(HELD_OUT)


def of_tier(found: dict[str, Outcome], *tiers: str) -> dict[str, str]:
    return {name: o.kind for name, o in found.items() if name.startswith(tiers)}


def test_every_tier_is_there():
    assert {c.tier for c in GIVEN} == {"T1", "T2", "T3", "T4", "T5", "T6"}
    assert len(GIVEN) == 74


def test_nothing_is_silently_wrong(given):
    assert {n: o.differences for n, o in given.items() if o.kind == "wrong"} == {}


def test_wrappers_renames_and_indices_are_all_solved(given):
    kinds = of_tier(given, "T1", "T2", "T3")
    assert len(kinds) == 28
    assert {n: k for n, k in kinds.items() if k != "solved"} == {}


def test_equal_shapes_are_solved_in_nine_of_ten(given):
    kinds = list(of_tier(given, "T4").values())
    assert kinds.count("solved") >= 0.9 * len(kinds)


def test_tensor_ops_leave_the_rest_of_the_tree_matched(given):
    kinds = of_tier(given, "T5")
    assert {n: k for n, k in kinds.items() if k in ("refused", "wrong")} == {}


def test_what_is_not_determined_is_asked_or_refused(given):
    determined = {c.name for c in GIVEN if c.verdict == "map"}
    kinds = {n: k for n, k in of_tier(given, "T6").items() if n not in determined}
    assert len(kinds) == 16
    assert {n: k for n, k in kinds.items() if k not in ("asked", "refused")} == {}


def test_families_that_nobody_tuned_to_are_never_wrong(held_out):
    assert {n: o.differences for n, o in held_out.items() if o.kind == "wrong"} == {}


@pytest.fixture(scope="module")
def more() -> dict[str, Outcome]:
    return outcomes(MORE)


def test_more_families_are_never_wrong(more):
    assert len(more) == 225
    assert {n: o.differences for n, o in more.items() if o.kind == "wrong"} == {}


def test_more_families_are_solved_as_often_as_they_were(more):
    kinds = [o.kind for o in more.values()]
    assert kinds.count("solved") >= 0.8 * len(kinds)
    assert set(of_tier(more, "T1", "T2", "T3").values()) == {"solved"}
