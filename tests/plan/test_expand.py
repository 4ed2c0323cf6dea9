"""A plan that was changed by hand, or is for other trees, is refused: both sides are accounted for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptdoctor.align.model import Alignment
from ckptdoctor.errors import PlanError, StalePlanError
from ckptdoctor.plan import Fill, Plan, expand, from_toml
from ckptdoctor.plan.toml import from_dict
from ckptdoctor.planner import make_plan
from ckptdoctor.trees import ParamTree, TensorSpec
from tests.plan.strategies import SHAPE, alignments

Found = tuple[Alignment, ParamTree, ParamTree]


def make(found: Found) -> Plan:
    return make_plan(*found, file="a.pth", model_label="m.py")


def changed(plan: Plan, number: int, **fields: object) -> Plan:
    steps = [s.to_dict() for s in plan.step]
    steps[number] |= fields
    return from_dict({**plan.to_dict(), "step": steps})


@given(alignments(), st.data())
def test_a_changed_count_is_refused(found: Found, data: st.DataObject) -> None:
    plan = make(found)
    assume(plan.step)
    number = data.draw(st.integers(0, len(plan.step) - 1))
    more = data.draw(st.sampled_from([-1, 1, 1000]))
    assume(plan.step[number].keys + more > 0)
    with pytest.raises(PlanError, match="keys, and it is"):
        expand(changed(plan, number, keys=plan.step[number].keys + more), *found[1:])


@given(alignments(), st.data())
def test_a_removed_step_is_refused(found: Found, data: st.DataObject) -> None:
    plan = make(found)
    assume(plan.step)
    gone = data.draw(st.integers(0, len(plan.step) - 1))
    rest = [s.to_dict() for n, s in enumerate(plan.step) if n != gone]
    with pytest.raises(PlanError):
        expand(from_dict({**plan.to_dict(), "step": rest}), *found[1:])


@given(alignments(), st.data())
def test_a_changed_result_is_refused(found: Found, data: st.DataObject) -> None:
    plan = make(found)
    name = data.draw(st.sampled_from(["loaded", "unchanged", "kept", "reinitialised", "tied", "unused"]))
    counts = plan.result.to_dict()
    counts[name] += 1
    with pytest.raises(PlanError, match="result says"):
        expand(from_dict({**plan.to_dict(), "result": counts}), *found[1:])


@given(alignments())
def test_other_trees_are_refused(found: Found) -> None:
    plan = make(found)
    _, source, target = found
    more = ParamTree({**source.specs, "one.more": SHAPE})
    with pytest.raises(StalePlanError, match="another checkpoint"):
        expand(plan, more, target)
    other = ParamTree({k: TensorSpec((5, *s.shape)) for k, s in target.specs.items()} | {"x": SHAPE})
    with pytest.raises(StalePlanError, match="another model"):
        expand(plan, source, other)


def tree(specs: dict[str, Any]) -> ParamTree:
    return ParamTree({k: v if isinstance(v, TensorSpec) else TensorSpec(v) for k, v in specs.items()})


def by_hand(steps: str, source: dict[str, Any], target: dict[str, Any], result: str = "") -> dict[str, Fill]:
    trees = [
        ParamTree({k: v if isinstance(v, TensorSpec) else TensorSpec(v) for k, v in t.items()})
        for t in (source, target)
    ]
    text = f"""
    format = 1
    source = {{file = "a", tree = "{trees[0].digest}", keys = {len(trees[0])}}}
    target = {{model = "b", tree = "{trees[1].digest}", keys = {len(trees[1])}}}
    step = [{steps}]
    result = {{{result or f"loaded = {len(target)}"}}}
    """
    return dict(expand(from_toml(text), *trees).fills)


V = (2, 3)


@pytest.mark.parametrize(
    ("steps", "source", "target", "words"),
    [
        ("", {"a": V}, {"a": V, "b": V}, "nothing fills `b`"),
        ("", {"a": V, "b": V}, {"a": V}, "no key `b`"),
        ('{op="rename", from="a", to="c", keys=1}', {"a": V}, {"b": V}, "no key `c`, which `a` would fill"),
        ('{op="rename", from="a", to="b", keys=1}', {"a": V, "b": V}, {"b": V}, "filled twice"),
        ("", {"a": V}, {"a": (3, 2)}, "gives shape [2, 3], `a` has [3, 2]"),
        ('{op="keep", to=["**"], keys=1}', {"a": V}, {"a": V}, "filled twice, first by `a`"),
        ('{op="strip_prefix", prefix="m.", keys=1}', {"m.a": V, "a": V}, {"a": V}, "both become `a`"),
        ('{op="tie", from="a", to="b", keys=1}', {"a": V}, {"a": V, "b": V}, "not tied"),
        ("", {"a": TensorSpec(V, "float16")}, {"a": V}, "changes dtype and no cast step says so"),
        (
            '{op="cast", to=["a"], dtype_from="float32", dtype_to="float16", class="lossless", keys=1}',
            {"a": V},
            {"a": TensorSpec(V, "float16")},
            "which needs float32 to float16 (rounding)",
        ),
        (
            '{op="transform", from=["a", "b"], to=["c"], apply=["concat(0)"], keys=1}',
            {"a": V},
            {"c": V},
            "no `b`",
        ),
        (
            '{op="transform", from=["a"], to=["c"], apply=["explode(0)"], keys=1}',
            {"a": V},
            {"c": V},
            "unknown op",
        ),
        (
            '{op="transform", from=["a.{0..1}"], to=["c"], apply=["concat(0)"], keys=1}',
            {"a.0": V, "a.1": V, "a.2": V},
            {"c": (4, 3)},
            "no key `a.2`",
        ),
    ],
)
def test_what_does_not_add_up_is_refused(
    steps: str, source: dict[str, Any], target: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError) as error:
        by_hand(steps, source, target)
    assert words in str(error.value)


def test_a_changed_op_is_refused_when_shapes_show_it() -> None:
    step = '{op="transform", from=["a"], to=["a"], apply=["OP"], keys=1}'
    assert by_hand(step.replace("OP", "transpose(0,1)"), {"a": V}, {"a": (3, 2)})["a"].ops == (
        "transpose(0,1)",
    )
    with pytest.raises(PlanError, match="gives shape"):
        by_hand(step.replace("OP", "reshape(6)"), {"a": V}, {"a": (3, 2)})


def test_steps_act_at_once_and_the_first_that_fits_wins() -> None:
    steps = """{op="rename", from="x.1", to="one", keys=1}, {op="rename", from="x.{i}", to="x.{i+1}", keys=2},
               {op="drop", from=["x.0"], keys=1}"""
    source, target = dict.fromkeys(["x.0", "x.1", "x.2"], V), dict.fromkeys(["one", "x.1", "x.3"], V)
    with pytest.raises(PlanError, match=r"step 3 \(drop\): says 1 keys, and it is 0"):
        by_hand(steps, source, target)
    fills = by_hand(steps.rpartition(",\n")[0], source, target)
    assert {k: f.sources for k, f in fills.items()} == {"one": ("x.1",), "x.1": ("x.0",), "x.3": ("x.2",)}


def test_ties_hang_on_the_tensor_that_is_loaded() -> None:
    tied = TensorSpec(V, storage="s")
    steps = '{op="tie", from="emb.w", to="head.w", keys=1}'
    fills = by_hand(
        steps, {"emb.w": V}, {"emb.w": tied, "head.w": tied}, "loaded = 1, unchanged = 1, tied = 1"
    )
    assert fills["head.w"] == Fill("head.w", "tie", ("emb.w",), (), tied_to="emb.w")


def test_the_same_checkpoint_without_device_tags_fits_too() -> None:
    steps = '{op="place", devices=["cuda:3"], keys=1}'
    for device in ("cuda:3", "cpu"):
        source = {"a": TensorSpec(V, device=device), "b": TensorSpec(V)}
        assert len(by_hand(steps, source, {"a": V, "b": V}, "loaded = 2, unchanged = 2")) == 2
    both = {k: TensorSpec(V, device="cuda:3") for k in "ab"}
    with pytest.raises(PlanError, match="says 1 keys, and it is 2"):
        by_hand(steps, both, {"a": V, "b": V}, "loaded = 2, unchanged = 2")
