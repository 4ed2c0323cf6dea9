"""A correct plan changed in any way: refused with the model untouched, and never verified."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import ckptdoctor
from ckptdoctor.errors import CkptDoctorError, PlanError, VerifyError
from ckptdoctor.formats.tensors import TensorReader
from ckptdoctor.keys.capture import Binding, capture
from ckptdoctor.plan import Plan, expand
from ckptdoctor.plan.fills import Fill
from ckptdoctor.testing import History, Network, Truth, pairs, write
from ckptdoctor.testing.judging import _differences, _picture
from ckptdoctor.verify import verify_model
from tests.trust.amount import examples

EASY = ("prefix", "synonyms", "number_in_name", "order", "fuse", "nest", "cast", "added")
TEXT_ONLY = {"why", "safety", "op"}


@dataclass
class Expanded:
    """What ``verify`` needs of an expansion."""

    fills: dict[str, Fill]
    unused: dict[str, str]


def planned(pair: tuple[Network, History], folder: Path) -> tuple[Any, Path, Truth, Plan]:
    """A fresh model, the file, the truth and a plan that is right."""
    network, history = pair
    path, truth = write(replace(history, ema=""), network.build(1).state_dict(), folder)
    model = network.build(2)
    found = ckptdoctor.diagnose(ckptdoctor.snapshot(model), path)
    assume(found.plan is not None and found.verdict in ("compatible", "repairable"))
    assert found.plan is not None
    return model, path, truth, found.plan


@examples(60)
@given(pairs(only=EASY), st.data())
def test_verification_rejects_every_other_way_to_fill_the_model(
    pair: tuple[Network, History], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, path, _, plan = planned(pair, Path(folder))
        before = {k: v.clone() for k, v in model.state_dict().items() if hasattr(v, "clone")}
        archive = ckptdoctor.inspect(path)
        chosen = archive[plan.source.state_dict]
        tree, reader = ckptdoctor.snapshot(model), TensorReader(archive, chosen)
        fills = dict(expand(plan, chosen.tree, tree).fills)
        try:
            ckptdoctor.auto_load(model, path, plan=plan)
        except CkptDoctorError:
            assume(False)
        verify_model(
            Expanded(fills, {}), reader, model, ties=tree.ties, before=before.get, accept=("rounding",)
        )
        mutated = data.draw(st.sampled_from(list(other_fills(fills, chosen.tree, tree)) or [None]))
        assume(mutated is not None)
        try:
            verify_model(Expanded({**fills, **mutated}, {}), reader, model, ties=tree.ties, before=before.get)
        except VerifyError as error:
            assert any(ckptdoctor.keys.printable(k)[:40] in str(error) for k in mutated)
        else:
            raise AssertionError(f"verified although {mutated}")


def other_fills(fills: dict[str, Fill], source: Any, target: Any) -> list[dict[str, Fill]]:
    """Changes of one fill, each of which gives the key other values."""
    found: list[dict[str, Fill]] = []
    loads = {k: f for k, f in fills.items() if f.kind == "load" and target[k].numel > 1}
    for key, fill in loads.items():
        if target[key].dtype != "bool":
            found.append({key: fill._replace(kind="keep", sources=(), ops=())})
        mine = fill.sources[0]
        for name, spec in source.specs.items() if len(fill.sources) == 1 else ():
            alike = spec.shape == source[mine].shape and spec.dtype == "float32"
            if alike and name != mine and not _same(source, name, mine):
                found.append({key: fill._replace(sources=(name,))})
        if len(fill.sources) > 1:
            found.append({key: fill._replace(sources=fill.sources[::-1])})
        if any(op.startswith(("transpose", "chunk", "slice")) for op in fill.ops):
            found.append({key: fill._replace(ops=())})
    gone = {f"{k}_gone": f._replace(target=f"{k}_gone") for k, f in list(loads.items())[:1]}
    return [*found, gone] if gone else found


def _same(source: Any, a: str, b: str) -> bool:
    x, y = source[a], source[b]
    return bool(x.storage) and (x.storage, x.offset) == (y.storage, y.offset)


def mutations(plan: Plan) -> list[Plan]:
    """Steps left out, doubled, exchanged; counts, digests and names changed."""
    made: list[Plan] = []
    for i, step in enumerate(plan.step):
        rest = (*plan.step[:i], *plan.step[i + 1 :])
        made.append(_with(plan, step=rest))
        made.append(_with(plan, step=(*plan.step, step)))
        for field, value in vars(step).items():
            if field in TEXT_ONLY:
                continue
            for other in _others(value):
                steps = list(plan.step)
                steps[i] = _with(step, **{field: other})
                made.append(_with(plan, step=tuple(steps)))
    for side in ("source", "target"):
        ref = getattr(plan, side)
        digest = "sha256:" + ref.tree[7:][::-1]
        made.append(_with(plan, **{side: _with(ref, tree=digest)}))
        made.append(_with(plan, **{side: _with(ref, keys=ref.keys + 1)}))
    counts = plan.result
    made.append(_with(plan, result=_with(counts, loaded=counts.loaded + 1)))
    return made


def _with(data: Any, **changes: Any) -> Any:
    """A copy with other values, which nothing checks."""
    made = copy.copy(data)
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, str):
        return [value + "x", value[:-1], "**"]
    if isinstance(value, tuple):
        return [value[:-1], (*value, *value)] if value else []
    return []


@examples(60)
@given(pairs(only=EASY), st.data())
def test_a_mutated_plan_is_refused_or_does_what_the_true_one_does(
    pair: tuple[Network, History], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, path, truth, plan = planned(pair, Path(folder))
        mutated = data.draw(st.sampled_from(mutations(plan)))
        before = _picture(model)
        try:
            ckptdoctor.auto_load(model, path, plan=mutated)
        except CkptDoctorError:
            assert _picture(model) == before
        else:
            assert not list(_differences(model, truth))


@pytest.mark.parametrize("to", ["**.k_proj.*", "2.{i}.weight", "{i}.*"])
def test_a_pattern_that_needs_more_than_it_is_matched_with_is_an_error_with_words(to: str) -> None:
    """A plan that was changed in memory was checked by nobody; a mutated one ended in a KeyError."""
    with pytest.raises(PlanError, match="has fewer indices or wildcards"):
        capture(to).fill(capture("**").match("a.b") or Binding({}, (), ""))
