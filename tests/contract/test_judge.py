"""When a release is called compatible, and for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ckptdoctor.contract.consumers import TOLERANCES, plainly
from ckptdoctor.contract.judge import Judgement, Terms, judge
from ckptdoctor.settings.model import Consumer
from ckptdoctor.trees import ParamTree, TensorSpec

BASE = {"stem.weight": (8, 3), "stem.bias": (8,), "fc.weight": (4, 8), "fc.bias": (4,)}


def tree(shapes: dict[str, tuple[int, ...]], buffers: tuple[str, ...] = (), **more: Any) -> ParamTree:
    specs = {k: TensorSpec(s, kind="buffer" if k in buffers else "param") for k, s in shapes.items()}
    return ParamTree(specs, ordered=False, **more)


def judged(source: ParamTree, target: ParamTree, **terms: Any) -> Judgement:
    return judge(source, target, Terms(**terms), file="old.tree", label="model.py:Net")


def test_equal_trees_are_compatible() -> None:
    assert judged(tree(BASE), tree(BASE)).outcome == "compatible"


def test_another_dtype_loads_as_torch_loads_it() -> None:
    half = ParamTree({k: TensorSpec(s, "float16") for k, s in BASE.items()}, ordered=False)
    assert judged(half, tree(BASE)).outcome == "compatible"


def test_extra_state_is_a_key_of_a_strict_load() -> None:
    more = tree(BASE, extra={"fc._extra_state": "dict of 2"})
    for source, target in ((more, tree(BASE)), (tree(BASE), more)):
        found = judged(source, target)
        assert (found.outcome, found.open) == ("open", ("fc._extra_state",))
        assert judged(source, target, level="weights").outcome == "compatible"


@pytest.mark.parametrize("shape", [(5, 8), (8, 4)])
def test_a_shape_is_never_tolerated(shape: tuple[int, ...]) -> None:
    other = tree({**BASE, "fc.weight": shape})
    for consumer in TOLERANCES:
        assert judged(tree(BASE), other, consumers=(consumer,)).outcome in ("open", "repairable")


def test_a_rename_is_never_tolerated() -> None:
    renamed = tree({k.replace("fc", "head"): s for k, s in BASE.items()})
    found = judged(tree(BASE), renamed, consumers=("torch-non-strict", "transformers"))
    assert found.outcome == "repairable", "a consumer that ignores both names would lose the weights"


@pytest.mark.parametrize("level", ["weights", ("stem.**", "fc.**")])
def test_what_does_not_count_may_come_and_go(level: Any) -> None:
    more = {**BASE, "norm.seen": ()}
    with_buffer = tree(more, ("norm.seen",))
    assert judged(tree(BASE), with_buffer).outcome == "open"
    assert judged(tree(BASE), with_buffer, level=level).outcome == "compatible"
    assert judged(with_buffer, tree(BASE), level=level).outcome == "compatible"


def test_what_counts_still_counts_beside_it() -> None:
    renamed = {k.replace("fc", "head"): s for k, s in BASE.items()} | {"norm.seen": ()}
    found = judged(tree(BASE), tree(renamed, ("norm.seen",)), level="weights")
    assert found.outcome == "repairable" and found.plan is not None
    assert {step.op for step in found.plan.step} == {"rename", "reinit"}
    assert found.plan.decision == ("reinit=norm.seen",)
    gone = {k: s for k, s in BASE.items() if k != "fc.bias"} | {"norm.seen": ()}
    found = judged(tree(BASE), tree(gone, ("norm.seen",)), level="weights")
    assert found.outcome == "open" and "fc.bias" in found.open and "norm.seen" not in found.open


TREES = st.dictionaries(
    st.sampled_from(["a.w", "b.w", "c.w", "a.b", "d.0.w", "d.1.w"]),
    st.sampled_from([(2,), (3,), (2, 3)]),
    max_size=5,
)


@given(TREES, TREES, st.lists(st.sampled_from(sorted(TOLERANCES)), min_size=1, unique=True))
@settings(max_examples=150)
def test_law_compatible_is_what_the_loader_takes(
    a: dict[str, tuple[int, ...]], b: dict[str, tuple[int, ...]], consumers: list[Consumer]
) -> None:
    source, target = tree(a), tree(b)
    strict = judged(source, target)
    plain = plainly(source, target)
    loads = not (plain.missing or plain.unexpected or plain.mismatched)
    assert (strict.outcome == "compatible") == loads
    assert strict.outcome != "tolerated"
    for_some = judged(source, target, consumers=tuple(consumers))
    if for_some.outcome in ("compatible", "tolerated"):
        assert plain.passes(consumers)


def modules() -> tuple[nn.Module, dict[str, dict[str, torch.Tensor]]]:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    full = dict(model.state_dict())
    return model, {
        "missing": {k: v for k, v in full.items() if k != "1.bias"},
        "unexpected": {**full, "2.bias": torch.zeros(1)},
        "mismatched": {**full, "1.bias": torch.zeros(5)},
    }


@pytest.mark.parametrize("what", ["missing", "unexpected", "mismatched"])
@pytest.mark.parametrize("strict", [True, False])
def test_torch_tolerates_what_the_table_says(what: str, strict: bool) -> None:
    model, states = modules()
    tolerance = TOLERANCES["torch-strict" if strict else "torch-non-strict"]
    try:
        model.load_state_dict(states[what], strict=strict)
        passed = True
    except RuntimeError:
        passed = False
    assert passed == (what != "mismatched" and getattr(tolerance, what))


@pytest.mark.parametrize("what", ["missing", "unexpected", "mismatched"])
@pytest.mark.filterwarnings("ignore")
def test_dcp_tolerates_what_the_table_says(what: str, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    model, states = modules()
    dcp.save(states[what], checkpoint_id=tmp_path, no_dist=True)
    try:
        dcp.load(dict(model.state_dict()), checkpoint_id=tmp_path, no_dist=True)
        passed = True
    except CheckpointException:  # which is no Exception
        passed = False
    assert passed == (what != "mismatched" and getattr(TOLERANCES["dcp"], what))
