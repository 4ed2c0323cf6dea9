"""The measure itself: an answer that is wrong has to be called wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.baselines import longest_suffix, order_zip, prefix_strip, strict_load
from benchmarks.cases import Case, Fill
from benchmarks.equality import same_ops
from benchmarks.mutations import mutations
from benchmarks.scoring import Answer, judge
from tests.align.pairs import linear, norm, tree

SOURCE = tree(linear("q", 4, 4), linear("k", 4, 4), linear("old", 9, 4))
TARGET = tree(linear("query", 4, 4), linear("key", 4, 4), linear("head", 3, 4))
TRUTH = {
    "query.weight": Fill(("q.weight",), ("transpose(0,1)",)),
    "query.bias": Fill(("q.bias",)),
    "key.weight": Fill(("k.weight",), ("transpose(0,1)",)),
    "key.bias": Fill(("k.bias",)),
}
HEAD = {"head.weight": "missing-ok", "head.bias": "missing-ok"}
CASE = Case("pair", "T5", SOURCE, TARGET, "map", TRUTH, HEAD, {"old.weight": "head", "old.bias": "head"})


def without(key: str) -> dict[str, Fill]:
    return {k: f for k, f in TRUTH.items() if k != key}


def test_all_right_is_solved():
    assert judge(CASE, Answer(TRUTH)).kind == "solved"


def test_another_spelling_of_the_same_op_is_right():
    claims = TRUTH | {"key.weight": Fill(("k.weight",), ("permute(1,0)",))}
    assert judge(CASE, Answer(claims)).kind == "solved"


@pytest.mark.parametrize(
    "fill",
    [
        Fill(("q.weight",), ("transpose(0,1)",)),  # another tensor
        Fill(("k.weight",)),  # not turned
        Fill(("k.weight",), ("reshape(4,4)",)),
        Fill(("nowhere",)),
    ],
)
def test_one_key_off_makes_the_case_wrong(fill):
    outcome = judge(CASE, Answer(TRUTH | {"key.weight": fill}))
    assert outcome.kind == "wrong"
    assert outcome.differences[0].startswith("key.weight: claimed")


def test_filling_what_should_stay_is_wrong():
    assert judge(CASE, Answer(TRUTH | {"head.bias": Fill(("old.bias",), ("slice(0,0,3)",))})).kind == "wrong"


def test_an_open_key_that_names_the_truth_is_asked():
    choices = {"key.bias": (Fill(("q.bias",)), Fill(("k.bias",)))}
    assert judge(CASE, Answer(without("key.bias"), choices=choices)).kind == "asked"
    question = (frozenset({"key.bias"}), frozenset({"k.bias", "q.bias"}))
    assert judge(CASE, Answer(without("key.bias"), asks=(question,))).kind == "asked"


def test_an_open_key_that_does_not_name_it_is_partial():
    choices = {"key.bias": (Fill(("q.bias",)),)}
    assert judge(CASE, Answer(without("key.bias"), choices=choices)).kind == "partial"


def test_a_gap_passed_over_in_silence_is_wrong():
    assert judge(CASE, Answer(without("key.bias"), content=True)).kind == "wrong"
    assert judge(CASE, Answer(without("key.bias"), kept=frozenset({"key.bias"}))).kind == "wrong"


def test_claiming_nothing_is_refused():
    assert judge(CASE, Answer({})).kind == "refused"


def test_where_nothing_is_determined_even_the_truth_may_not_be_claimed():
    open_case = replace(CASE, verdict="ambiguous", certain=frozenset({"query.bias"}))
    assert judge(open_case, Answer(TRUTH)).kind == "wrong"
    assert judge(open_case, Answer({"query.bias": Fill(("q.bias",))})).kind == "asked"


def test_a_tied_key_may_come_from_either_mate():
    ties = (("a.weight", "b.weight"),)
    both = tree({"a.weight": (5, 2), "b.weight": (5, 2)}, ties=ties)
    case = Case(
        "tied", "T1", both, both, "map", {"a.weight": Fill(("a.weight",))}, {"b.weight": "missing-ok"}
    )
    answer = {"a.weight": Fill(("b.weight",)), "b.weight": Fill(("a.weight",))}
    assert judge(case, Answer(answer)).kind == "solved"


def test_chains_are_compared_by_what_they_do():
    square = ((4, 4),)
    assert same_ops(("copy",), (), square)
    assert same_ops(("transpose(0,1)", "transpose(1,0)"), (), square)
    assert same_ops(("chunk(0,1,2)",), ("slice(0,2,4)",), square)
    assert not same_ops(("transpose(0,1)",), (), square)
    assert not same_ops(("arith:W + B A",), (), square)


class TestBaselines:
    def test_strict_load_takes_equal_trees_only(self):
        assert strict_load(SOURCE, SOURCE).claims == {k: Fill((k,)) for k in SOURCE.specs}
        assert strict_load(SOURCE, TARGET).claims == {}
        assert strict_load(tree(linear("q", 4, 4)), tree(linear("q", 4, 5))).claims == {}

    def test_prefix_strip_takes_module_off(self):
        wrapped = tree({f"module.{k}": s.shape for k, s in SOURCE.specs.items()})
        assert prefix_strip(wrapped, SOURCE).claims["q.bias"] == Fill(("module.q.bias",))

    def test_order_zip_pairs_whatever_has_the_size(self):
        target = tree(linear("b", 4, 4), linear("a", 4, 4))
        assert order_zip(tree(linear("a", 4, 4), linear("b", 4, 4)), target).claims["b.bias"] == Fill(
            ("a.bias",)
        )
        turned = order_zip(tree({"w": (2, 3)}), tree({"w": (3, 2)})).claims
        assert turned == {"w": Fill(("w",), ("reshape(3,2)",))}
        assert order_zip(tree(linear("a", 4, 4)), target).claims == {}

    def test_longest_suffix_prefers_the_longer_name(self):
        source = tree({"weight": (2,), "norm.weight": (2,)})
        assert longest_suffix(source, tree({"x.norm.weight": (2,)})).claims == {
            "x.norm.weight": Fill(("norm.weight",))
        }
        assert longest_suffix(source, tree({"a.norm.weight": (2,), "b.norm.weight": (2,)})).refused
        assert longest_suffix(tree(norm("norm", 3)), tree(norm("x.norm", 2))).claims == {}


def test_mutations_are_the_same_each_time():
    from benchmarks.cases import read_cases
    from tests.align.pairs import FIXTURES

    cases = read_cases(FIXTURES / "cases")
    first, second = ([c.name for c in mutations(cases, 40, seed=3)] for _ in range(2))
    assert first == second
    assert len(set(first)) == 40


def test_a_mutation_carries_a_truth_that_fits_its_trees():
    from benchmarks.cases import read_cases
    from ckptdoctor.ops import parse_chain
    from tests.align.pairs import FIXTURES

    for case in mutations(read_cases(FIXTURES / "cases"), 120, seed=1):
        assert set(case.truth) | set(case.unfilled) <= set(case.target.specs), case.name
        for target, fill in case.truth.items():
            shapes = [case.source[s].shape for s in fill.sources]
            if not any(op.startswith(("arith", "weight_norm")) for op in fill.ops):
                assert parse_chain(fill.ops).out_shape(shapes) == case.target[target].shape, (
                    case.name,
                    target,
                )
