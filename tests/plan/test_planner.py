"""Plans reproduce alignments exactly, whatever the names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.align.model import Alignment, Match, Question, Strip, Unused
from ckptdoctor.decisions import Decision
from ckptdoctor.errors import PlanError, UndecidedError
from ckptdoctor.plan import Plan, expand, from_toml, to_toml
from ckptdoctor.planner import make_expanded, make_plan, reverse
from ckptdoctor.planner.renames import renames
from ckptdoctor.trees import ParamTree, TensorSpec
from tests.plan.strategies import SHAPE, alignments, renamings, wrapped


def plan(found: tuple[Alignment, ParamTree, ParamTree], decisions: tuple[Decision, ...] = ()) -> Plan:
    alignment, source, target = found
    return make_plan(alignment, source, target, file="a.pth", model_label="m.py", decisions=decisions)


def renamed(pairs: dict[str, str]) -> tuple[Alignment, ParamTree, ParamTree]:
    matches = {new: Match(new, "safe", (old,), (), ("names",)) for old, new in pairs.items()}
    return (
        Alignment(matches),
        ParamTree(dict.fromkeys(pairs, SHAPE)),
        ParamTree(dict.fromkeys(matches, SHAPE)),
    )


def rules(pairs: dict[str, str]) -> list[tuple[str, int]]:
    return [(str(r.rule), len(r.names)) for r in renames(pairs)]


@given(renamings())
def test_the_first_rule_that_fits_gives_the_new_name(pairs: dict[str, str]) -> None:
    found = renames(pairs)
    for old, new in pairs.items():
        first = next((n for r in found if (n := r.rule.apply(old)) is not None), old)
        assert first == new


@settings(max_examples=300)
@given(alignments())
def test_a_plan_worked_out_is_the_alignment(found: tuple[Alignment, ParamTree, ParamTree]) -> None:
    alignment, source, target = found
    made = plan(found)
    expansion = expand(made, source, target)
    assert list(expansion.fills) == list(target.specs)
    for key, match in alignment.matches.items():
        fill = expansion.fills[key]
        assert (fill.sources, fill.ops) == (match.sources, match.ops)
        assert (fill.kind == "keep") == (match.status == "kept")
    assert set(expansion.unused) == set(alignment.unused)
    assert from_toml(to_toml(made)) == made
    assert make_expanded(*found, file="a.pth", model_label="m.py") == expansion


@given(alignments())
def test_a_plan_does_not_depend_on_the_order_of_dicts(found: tuple[Alignment, ParamTree, ParamTree]) -> None:
    alignment, source, target = found
    backwards = Alignment(dict(reversed(alignment.matches.items())), dict(reversed(alignment.unused.items())))
    first, second = plan(found), plan((backwards, source, target))
    assert expand(first, source, target).fills == expand(second, source, target).fills
    assert len(first.step) == len(second.step)


@given(alignments())
def test_the_way_back_leads_to_the_first_tree(found: tuple[Alignment, ParamTree, ParamTree]) -> None:
    _, source, target = found
    made = plan(found)
    lossy = any(s.op == "drop" for s in made.step)
    if lossy:
        with pytest.raises(PlanError):
            reverse(made, source, target)
        return
    there = expand(made, source, target).fills
    back = expand(reverse(made, source, target), target, source).fills
    assert list(back) == list(source.specs)
    for key, fill in back.items():
        (origin,) = fill.sources
        forth = there[origin]
        # Joined tensors need not be taken apart: each part is also loaded on its own.
        assert forth.sources == (key,)
        assert fill.ops == forth.ops  # a transpose undoes itself, a copy too


@given(renamings(), st.sampled_from(["module", "_orig_mod.module", "x{y}"]))
def test_wrappers_become_strip_steps(pairs: dict[str, str], prefix: str) -> None:
    if not pairs:
        return
    found = wrapped(pairs, prefix)
    made = plan(found)
    assert made.step[0].op == "strip_prefix"
    fills = expand(made, *found[1:]).fills
    assert all(fills[new].sources == (f"{prefix}.{old}",) for old, new in pairs.items())


def test_a_strip_that_does_not_work_out_becomes_renames() -> None:
    pairs = {"module.a": "a", "module.b": "b", "module.module.c": "module.c"}
    found = renamed(pairs)
    lying = Alignment(found[0].matches, {}, (Strip("module", "", True, 3),))
    made = plan((lying, *found[1:]))
    assert expand(made, *found[1:]).fills["module.c"].sources == ("module.module.c",)


def test_swaps_and_chains_happen_at_once() -> None:
    assert rules({"a": "b", "b": "a"}) == [("a -> b", 1), ("b -> a", 1)]
    chain = {f"norm{i}.{leaf}": f"norm{i + 1}.{leaf}" for i in range(3) for leaf in ("weight", "bias")}
    assert rules(chain) == [("norm{i}.* -> norm{i+1}.*", 6)]


def test_stages_are_one_rule() -> None:
    keys = [f"layer{s}.{b}.{m}.weight" for s in range(1, 5) for b in range(3) for m in ("conv1", "bn1")]
    pairs = {k: k.replace("layer", "stages.") for k in keys}
    pairs = {k: f"stages.{int(v[7]) - 1}{v[8:]}" for k, v in pairs.items()} | {"fc.bias": "fc.bias"}
    assert rules(pairs) == [("layer{i}.** -> stages.{i-1}.**", 24)]


def test_more_numbers_than_letters() -> None:
    bits = [[str((i >> n) & 1) for n in range(30)] for i in range(0, 2**30, 98_765_431)]
    pairs = {f"old.{'.'.join(b)}.w": f"new.{'.'.join(reversed(b))}.w.end" for b in bits}
    found = renames(pairs)
    assert sorted(n for r in found for n in r.names) == sorted(pairs)
    assert all(r.rule.apply(n) == pairs[n] for r in found for n in r.names)


def test_ends_of_names_are_one_rule_each() -> None:
    heads = ["emb.norm", "h.0.attn.out.norm", "h.0.norm", "h.1.out.norm", "pool.norm"]
    pairs = {f"{h}.gamma": f"{h}.weight" for h in heads} | {f"{h}.beta": f"{h}.bias" for h in heads}
    assert sorted(rules(pairs)) == [("**.beta -> **.bias", 5), ("**.gamma -> **.weight", 5)]


def test_an_exception_comes_before_its_rule() -> None:
    pairs = {f"{m}.w": f"model.{m}.w" for m in "abcdef"} | {"fc.w": "head.w"}
    assert rules(pairs) == [("** -> model.**", 6), ("fc.w -> head.w", 1)][::-1]


def test_shifted_indices_are_limited_to_theirs() -> None:
    new = [0, 1, 3, 4, 5]  # a parameter-free layer came in at 2
    pairs = {f"{i}.{leaf}": f"{n}.{leaf}" for i, n in enumerate(new) for leaf in ("weight", "bias")}
    assert rules(pairs) == [("{i:2..4}.* -> {i+1}.*", 6)]


def test_what_is_the_same_gives_the_empty_plan() -> None:
    made = plan(renamed({"a.w": "a.w", "b.w": "b.w"}))
    assert made.step == () and made.complete and made.safe
    assert (made.result.loaded, made.result.unchanged) == (2, 2)


def test_open_questions_are_counted_and_nothing_runs() -> None:
    alignment, source, target = renamed({"old.a": "new.a", "old.b": "new.b"})
    source = ParamTree({**source.specs, "old.c": SHAPE, "stray": SHAPE})
    target = ParamTree({**target.specs, "new.c": SHAPE})
    question = Question(
        "equal-shapes", "which one is new.c?", flags=(("--rename old.c=new.c", "take old.c"),)
    )
    matches = {**alignment.matches, "new.c": Match("new.c", "undecided")}
    unused = {k: Unused(k, "no place", False) for k in ("old.c", "stray")}
    made = plan((Alignment(matches, unused, (), (question,), "undecided"), source, target))
    assert [s.op for s in made.step] == ["rename"] and not made.complete
    assert (made.result.open, made.result.unexplained) == (1, 2)
    with pytest.raises(UndecidedError, match=re.escape("--rename old.c=new.c")):
        expand(made, source, target)


def test_decisions_and_derived_buffers_are_told_apart() -> None:
    alignment, source, target = renamed({"a.w": "a.w"})
    target = ParamTree({**target.specs, "fc.w": SHAPE, "n.num_batches_tracked": SHAPE})
    matches = {**alignment.matches}
    matches |= {k: Match(k, "kept", evidence=("why",)) for k in ("fc.w", "n.num_batches_tracked")}
    made = plan((Alignment(matches), source, target), (Decision("reinit", "fc.*"),))
    assert {s.op: s.to for s in made.step} == {"keep": ("n.num_batches_tracked",), "reinit": ("fc.w",)}
    assert made.decision == ("reinit=fc.*",)


def test_devices_and_dtypes_become_steps() -> None:
    source = ParamTree({"a": TensorSpec((2,), "float16", device="cuda:3"), "b": TensorSpec((2,), "uint8")})
    target = ParamTree({"a": TensorSpec((2,), "float32"), "b": TensorSpec((2,), "float32")})
    matches = {k: Match(k, "safe", (k,)) for k in "ab"}
    made = plan((Alignment(matches), source, target))
    casts = [(s.to, s.class_, s.safety) for s in made.step if s.op == "cast"]
    assert casts == [(("a",), "lossless", "safe"), (("b",), "payload", "unsafe")]
    assert [s.devices for s in made.step if s.op == "place"] == [("cuda:3",)]
    assert expand(made, source, target).fills["b"].cast == "payload"
    assert not made.safe


def test_values_that_end_nowhere_are_not_safe() -> None:
    source = ParamTree({"qkv": TensorSpec((6, 2))})
    target = ParamTree({"q": TensorSpec((2, 2))})
    made = plan((Alignment({"q": Match("q", "safe", ("qkv",), ("chunk(0,0,3)",))}), source, target))
    assert [s.safety for s in made.step] == ["unsafe"]


def test_contradictions_are_refused() -> None:
    source, target = ParamTree({"a": TensorSpec((2,))}), ParamTree({"a": TensorSpec((3,))})
    with pytest.raises(PlanError, match="shape"):
        plan((Alignment({"a": Match("a", "safe", ("a",))}), source, target))


def test_a_split_and_its_way_back() -> None:
    source = ParamTree({f"h.{i}.qkv": TensorSpec((6, 2)) for i in range(3)})
    target = ParamTree({f"h.{i}.{n}": TensorSpec((2, 2)) for i in range(3) for n in "vkq"})
    matches = {
        f"h.{i}.{n}": Match(f"h.{i}.{n}", "safe", (f"h.{i}.qkv",), (f"chunk(0,{j},3)",))
        for i in range(3)
        for j, n in enumerate("qkv")
    }
    made = plan((Alignment({k: matches[k] for k in target.specs}), source, target))
    assert len(made.step) == 1 and made.safe
    (back,) = reverse(made, source, target).step
    assert back.op == "transform" and back.from_ == ("h.{i}.{q,k,v}",) and back.apply == ("concat(0)",)
    again = reverse(reverse(made, source, target), target, source)
    assert expand(again, source, target).fills == expand(made, source, target).fills


@pytest.mark.parametrize("lossy", ["cast", "drop"])
def test_there_is_no_way_back_from_a_loss(lossy: str) -> None:
    source = {"a": TensorSpec((2,), "float32"), "b": TensorSpec((2,))}
    target = {"a": TensorSpec((2,), "float16" if lossy == "cast" else "float32"), "b": TensorSpec((2,))}
    if lossy == "drop":
        del target["b"]
    matches = {k: Match(k, "safe", (k,)) for k in target}
    unused = {k: Unused(k, "not needed", True) for k in source if k not in target}
    trees = ParamTree(source), ParamTree(target)
    made = plan((Alignment(matches, unused), *trees))
    with pytest.raises(PlanError, match="no way back"):
        reverse(made, *trees)


def test_a_hundred_thousand_wrapped_keys_are_one_step() -> None:
    keys = [f"layers.{i}.m.{n}.{leaf}" for i in range(10_000) for n in "abcde" for leaf in ("weight", "bias")]
    found = wrapped({k: k for k in keys}, "module")
    made = plan(found)
    assert [(s.op, s.keys) for s in made.step] == [("strip_prefix", 100_000)]


def test_experts_of_many_blocks_are_a_few_rules() -> None:
    names = (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
    old, new = (
        "model.layers.{}.block_sparse_moe.experts.{}.{}.weight",
        "model.layers.{}.mlp.experts.{}.{}.weight",
    )
    pairs = {
        old.format(i, e, w): new.format(i, e, v) for i in range(120) for e in range(128) for w, v in names
    }
    assert len(rules(pairs)) == 3
