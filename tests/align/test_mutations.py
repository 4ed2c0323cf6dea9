"""Laws of the engine over mutated real trees. The truth is known because the mutation was made here."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.cases import Case, read_cases
from benchmarks.equality import plain
from benchmarks.mutations import Kind, load_kinds, mutate, usable
from benchmarks.scoring import answer_of, judge
from ckptdoctor.align import Alignment, align
from ckptdoctor.ops import parse_chain
from ckptdoctor.trees import ParamTree, TensorSpec
from tests.align.pairs import FIXTURES, fills

SMALL = 130  # keys: the laws do not depend on size, the time does


@cache
def bases() -> list[Case]:
    return [c for c in usable(read_cases(FIXTURES / "cases")) if len(c.target) <= SMALL]


def kinds(*names: str, solvable: bool | None = None) -> list[Kind]:
    found = load_kinds().values()
    return [k for k in found if (k.name in names or not names) and solvable in (None, k.solvable)]


@st.composite
def mutated(draw: st.DrawFn, *names: str, solvable: bool | None = None) -> Case:
    kind = draw(st.sampled_from(kinds(*names, solvable=solvable)))
    base = draw(st.sampled_from(bases()))
    case = mutate(base, kind.name, draw(st.integers(0, 10**6)), others=bases())
    assume(case is not None)
    assert case is not None
    return case


trees = st.deferred(lambda: st.sampled_from([c.target for c in bases()]))


def explain(case: Case, alignment: Alignment) -> str:
    return f"{case.name}: " + "; ".join(judge(case, answer_of(alignment)).differences[:5])


@given(mutated())
@settings(max_examples=150)
def test_no_mutation_makes_a_wrong_claim(case):
    alignment = align(case.source, case.target)
    assert judge(case, answer_of(alignment)).kind != "wrong", explain(case, alignment)


@given(mutated("wrap", "wrap inside"))
@settings(max_examples=50)
def test_wrappers_are_always_solved(case):
    alignment = align(case.source, case.target)
    assert judge(case, answer_of(alignment)).kind == "solved", explain(case, alignment)
    assert alignment.verdict == "repairable"


@given(mutated("reorder", "blocks in other order"))
@settings(max_examples=40)
def test_the_order_of_right_names_does_not_matter(case):
    alignment = align(case.source, case.target)
    assert judge(case, answer_of(alignment)).kind == "solved", explain(case, alignment)
    assert alignment.verdict == "compatible"


@given(mutated("two candidates", "other width", "block inserted"))
@settings(max_examples=40)
def test_what_needs_a_person_is_never_called_compatible_or_repairable(case):
    assert align(case.source, case.target).verdict in ("undecided", "incompatible")


@given(trees, st.booleans())
@settings(max_examples=40)
def test_a_tree_fits_itself_key_by_key(tree, ordered):
    alignment = align(replace(tree, ordered=ordered, modules={}), tree)
    assert alignment.verdict == "compatible"
    assert {t: f.sources for t, f in fills(alignment).items()} == {k: (k,) for k in tree.specs}
    assert not alignment.unused and not alignment.questions


@given(mutated(solvable=True), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_file_without_order_may_list_its_keys_in_any(case, rng: random.Random):
    keys = list(case.source.specs)
    rng.shuffle(keys)
    shuffled = ParamTree({k: case.source[k] for k in keys}, ordered=False)
    first = align(replace(case.source, ordered=False), case.target)
    second = align(shuffled, case.target)
    assert fills(first) == fills(second)
    assert first.verdict == second.verdict


@given(mutated(solvable=True))
@settings(max_examples=50)
def test_a_repaired_file_is_compatible(case):
    alignment = align(case.source, case.target)
    assume(judge(case, answer_of(alignment)).kind == "solved" and not case.unfilled)
    repaired = ParamTree({t: made(case, f.sources, f.ops) for t, f in fills(alignment).items()})
    again = align(repaired, case.target)
    assert again.verdict == "compatible"
    assert all(m.sources == (m.target,) and not plain(m.ops) for m in again.matches.values())


def made(case: Case, sources: tuple[str, ...], ops: tuple[str, ...]) -> TensorSpec:
    specs = [case.source[s] for s in sources]
    return TensorSpec(parse_chain(ops).out_shape([s.shape for s in specs]), specs[0].dtype)


@given(mutated())
@settings(max_examples=60)
def test_both_sides_are_accounted_for(case):
    alignment = align(case.source, case.target)
    assert list(alignment.matches) == list(case.target.specs)
    used = {s for m in alignment.matches.values() for s in m.sources}
    assert used | set(alignment.unused) == set(case.source.specs)
    assert not used & set(alignment.unused)


@given(mutated())
@settings(max_examples=60)
def test_every_claim_has_the_shape_of_its_key(case):
    for target, fill in fills(align(case.source, case.target)).items():
        assert made(case, fill.sources, fill.ops).shape == case.target[target].shape, target
