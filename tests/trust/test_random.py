"""Random networks and random histories of their files: the laws that users rely on."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

import ckptdoctor
from ckptdoctor.testing import (
    Group,
    History,
    Layer,
    Network,
    Outcome,
    histories,
    judge,
    networks,
    pairs,
    write,
)
from ckptdoctor.testing.history import Prefix
from tests.trust.amount import examples

Pair = tuple[Network, History]


def judged(pair: Pair) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return judge(*pair, Path(folder))


@examples(120)
@given(pairs())
def test_a_load_is_right_bit_for_bit_or_asks_and_touches_nothing(pair: Pair) -> None:
    outcome = judged(pair)
    assert outcome.kind != "loaded" or not outcome.problems


@examples(40)
@given(pairs())
def test_a_question_contains_the_truth_and_what_is_called_safe_is_true(pair: Pair) -> None:
    assert not judged(pair).problems


@examples(40)
@given(pairs(only=("prefix", "order"), odd=False))
def test_wrappers_order_and_formats_never_need_a_person(pair: Pair) -> None:
    network, history = pair
    history = replace(history, ema="")
    assume(not any(isinstance(s, Prefix) and _owned(network, s.text) for s in history.steps))
    outcome = judged((network, history))
    assert (outcome.kind, outcome.problems) == ("loaded", ()), outcome.words


def _owned(network: Network, prefix: str) -> bool:
    """Whether the model has a child of that name itself."""
    return bool({s for k in network.build().state_dict() for s in k.split(".")} & set(prefix.split(".")))


# --- another architecture -------------------------------------------------------------------------


@st.composite
def changed(draw: st.DrawFn, node: Group) -> Group:
    """The group with one thing changed somewhere: a width, a layer more, a layer less."""
    index = draw(st.integers(0, len(node.children) - 1))
    name, child = node.children[index]
    rows: list[tuple[str, Any]] = list(node.children)
    if isinstance(child, Group) and draw(st.booleans()):
        rows[index] = (name, draw(changed(child)))
    elif isinstance(child, Layer) and draw(st.booleans()):
        rows[index] = (name, replace(child, width=child.width + draw(st.integers(1, 3))))
    elif len(rows) > 1 and draw(st.booleans()):
        del rows[index]
    else:
        rows.append(("later", child))
    if node.style in ("ModuleList",):
        rows = [(str(i), row[1]) for i, row in enumerate(rows)]
    return replace(node, children=tuple(rows))


def weighed(network: Network) -> int | None:
    """How many values the model has; None where their count may change in a right repair (folded norms)."""
    state = network.build().state_dict()
    if any(
        word in k
        for k in state
        for word in ("weight_g", "original0", "weight_orig", "original", "extra_state")
    ):
        return None
    return sum(v.numel() for k, v in state.items() if not k.endswith("num_batches_tracked"))


@examples(60)
@given(st.data())
def test_a_file_of_another_architecture_is_never_compatible_or_safe(data: st.DataObject) -> None:
    network = Network(data.draw(networks()).root)
    other = Network(
        data.draw(changed(network.root)) if data.draw(st.booleans()) else data.draw(networks()).root
    )
    mine, theirs = weighed(network), weighed(other)
    assume(mine is not None and theirs is not None and mine != theirs)
    state = other.build(1).state_dict()
    history = replace(
        data.draw(histories(state, only=("prefix", "synonyms", "renumber", "order"), most=2)), ema=""
    )
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write(history, state, Path(folder))
        found = ckptdoctor.diagnose(ckptdoctor.snapshot(network.build(2)), path)
    assert found.verdict != "compatible"
    if found.verdict == "repairable":  # a part of a larger network may be all that the model is
        assert theirs > mine and found.alignment is not None
        assert all(m.status in ("safe", "kept") for m in found.alignment.matches.values())
        reasons = [u.reason for u in found.alignment.unused.values()]
        assert all(r.startswith(("outside ", "a buffer that models compute")) for r in reasons), reasons


# --- the plan is a function of the trees ---------------------------------------------------------


def claims(network: Network, history: History, folder: Path) -> dict[str, Any]:
    path, _ = write(history, network.build(1).state_dict(), folder)
    found = ckptdoctor.diagnose(ckptdoctor.snapshot(network.build(2)), path)
    assert found.alignment is not None
    return {k: (m.status, m.sources, m.ops) for k, m in found.alignment.matches.items()}


@examples(40)
@given(pairs(), st.sampled_from(("safetensors", "safetensors shards", "torch shards", "legacy", "zip")))
def test_format_shards_and_protocol_do_not_change_what_is_found(pair: Pair, form: str) -> None:
    network, history = Network(pair[0].root), replace(pair[1], envelope=(), ema="", device="", metadata=False)
    assume(not any("extra_state" in k for k in network.build().state_dict()))
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        first = claims(network, history, Path(a))
        second = claims(network, replace(history, form=form, protocol=5), Path(b))
    assert first == second


def test_every_kind_of_layer_is_drawn_and_runs() -> None:
    from ckptdoctor.testing.drawing import layers
    from ckptdoctor.testing.layers import KINDS
    from ckptdoctor.testing.recipes import forward

    seen: set[str] = set()

    @examples(1500)
    @given(layers())
    def draw(layer: Layer) -> None:
        seen.add(layer.kind)

    draw()
    assert seen == set(KINDS)
    for kind in KINDS:
        model = Network(Group("Part", (("only", Layer(kind)),))).build(1)
        assert forward(model).shape[0] == 2, kind
        tensors = [v for v in model.state_dict().values() if hasattr(v, "numel")]
        assert all(v.abs().sum() > 0 for v in tensors if v.numel() > 3 and v.dtype.is_floating_point), kind


def test_every_kind_of_step_and_file_is_drawn() -> None:
    seen: Counter[str] = Counter()

    @examples(300)
    @given(pairs())
    def draw(pair: Pair) -> None:
        network, history = pair
        seen.update(
            {type(s).__name__ for s in history.steps} | {history.form, f"protocol {history.protocol}"}
        )
        seen.update(name for name in ("envelope", "ema", "device", "metadata") if getattr(history, name))
        seen.update(name for name in ("ties", "shared") if getattr(network, name))

    draw()
    steps = {"Prefix", "Relabel", "Order", "Fuse", "Transpose", "Cast", "Gone", "Added"}
    forms = {"zip", "legacy", "safetensors", "safetensors shards", "torch shards"}
    rest = {"protocol 2", "protocol 5", "envelope", "ema", "device", "metadata", "ties", "shared"}
    assert steps | forms | rest <= set(seen)


@examples(15)
@given(st.data())
def test_fused_attention_split_in_three_is_right_or_asked(data: st.DataObject) -> None:
    rows = (
        ("attn", Layer("MultiheadAttention", 4)),
        ("fc", Layer("Linear", 4, data.draw(st.integers(2, 5)))),
    )
    network = Network(Group("Part", rows))
    history = data.draw(
        histories(network.build().state_dict(), only=("split", "prefix", "synonyms", "split"))
    )
    assert not judged((network, history)).problems
