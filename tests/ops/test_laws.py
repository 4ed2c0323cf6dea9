"""Laws that every op obeys, over the examples that the op itself gives and random neighbours of them."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import OPS, Chain, covers, parse_chain, rejoin
from ckptdoctor.ops.each import Each

EXAMPLES = [(text, shapes) for op in [*OPS.values(), Each] for text, shapes in op.EXAMPLES]


def tensors(shapes, dtype=torch.float32):
    """Distinct positive values, so that any displacement shows."""
    found, start = [], 1
    for shape in shapes:
        n = int(torch.Size(shape).numel())
        found.append(torch.arange(start, start + n, dtype=torch.float64).reshape(shape).to(dtype))
        start += n
    return found


@st.composite
def neighbours(draw):
    """An op text near an example, with shapes near the example's; many do not fit, and must say so."""
    text, shapes = draw(st.sampled_from(EXAMPLES))
    text = re.sub(r"-?\d+", lambda m: str(draw(st.one_of(st.just(int(m[0])), st.integers(-3, 6)))), text)
    sizes = st.integers(0, 6)
    shapes = [tuple(draw(st.one_of(st.just(s), sizes)) for s in shape) for shape in shapes]
    return text, shapes


def takes(chain):
    """The dtype of examples: that of the first op."""
    first = chain.ops[0] if chain.ops else None
    return getattr(first, "op", first).TAKES if first is not None else "float32"


def numbers(tensor):
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten().tolist()


def check_laws(text, shapes):
    chain = parse_chain(text)
    assert parse_chain(str(chain)) == chain
    assert parse_chain(chain.texts) == chain
    dtype = takes(chain)
    sources = tensors(shapes, getattr(torch, dtype))
    before = [t.clone() for t in sources]
    result = chain.run(sources)
    assert tuple(result.shape) == chain.out_shape(shapes)
    assert str(result.dtype) == "torch." + chain.out_dtype([dtype] * len(shapes))
    assert all(torch.equal(a, b) for a, b in zip(sources, before, strict=True)), (
        "an op must not write to its source"
    )
    if chain.effect == "exact":
        assert set(numbers(result)) <= {0.0}.union(*map(numbers, sources))
    if chain.lossless:
        undo = chain.inverse(shapes)
        for source, back in zip(sources, undo, strict=True):
            assert torch.equal(back.run([result]), source)
            assert parse_chain(str(back)) == back
    else:
        with pytest.raises(PlanError, match="cannot be undone"):
            chain.inverse(shapes)


@pytest.mark.parametrize(("text", "shapes"), EXAMPLES, ids=[f"{t}{s}" for t, s in EXAMPLES])
def test_examples_obey_the_laws(text, shapes):
    check_laws(text, shapes)


def test_every_op_has_an_example_and_a_doc():
    for name, op in OPS.items():
        assert op.EXAMPLES and op.__doc__ and f"``{name}" in op.__doc__


@settings(max_examples=600, deadline=None)
@given(neighbours())
def test_neighbours_obey_the_laws_or_are_refused(case):
    text, shapes = case
    try:
        parse_chain(text).out_shape(shapes)
    except PlanError:
        return
    try:
        check_laws(text, shapes)
    except PlanError as refused:  # values, not shapes, decide about chunk_zero
        assert "chunk_zero" in text and "is not zero" in str(refused)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_lossless_chains_round_trip(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    start = tensors([shape])[0]
    texts, now = [], start
    for _ in range(data.draw(st.integers(0, 5))):
        rank = now.ndim
        choices = [f"unsqueeze({rank})", "reshape(-1)", f"reshape({','.join(map(str, reversed(now.shape)))})"]
        if rank > 1:
            choices.append(f"transpose(0,{rank - 1})")
            order = data.draw(st.permutations(range(rank)))
            choices.append(f"permute({','.join(map(str, order))})")
        if rank and now.shape[0] > 1:
            n = now.shape[0]
            choices.append(f"blockperm(0;{n};{','.join(map(str, data.draw(st.permutations(range(n)))))})")
        texts.append(data.draw(st.sampled_from(choices)))
        now = parse_chain(texts[-1]).run([now])
    chain = parse_chain(texts)
    assert chain.lossless
    assert torch.equal(chain.run([start]), now)
    (undo,) = chain.inverse([shape])
    assert torch.equal(undo.run([now]), start)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 1), st.data())
def test_cuts_of_one_source_cover_it_and_rejoin(sizes, dim, data):
    shape = (sum(sizes), 3) if dim == 0 else (3, sum(sizes))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    head = data.draw(st.sampled_from(["", f"blockperm({dim};1;0)|"]))
    tail = data.draw(st.sampled_from(["", "|transpose(0,1)"]))
    texts = [f"{head}slice({dim},{e - s},{e}){tail}" for s, e in zip(sizes, ends, strict=True)]
    chains = [parse_chain(t) for t in data.draw(st.permutations(texts))]
    (source,) = tensors([shape])
    assert covers(chains, shape)
    order, join = rejoin(chains, shape)
    parts = [chain.run([source]) for chain in chains]
    assert torch.equal(join.run([parts[i] for i in order]), source)
    assert not covers(chains[1:], shape)
    assert not covers([*chains, chains[0]], shape)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=60), st.from_regex(r"[a-z_]{1,12}\([-0-9,;. ]{0,20}\)", fullmatch=True)))
def test_hostile_text_is_refused_with_a_plan_error(text):
    try:
        chain = parse_chain(text)
    except PlanError as error:
        assert "\x1b" not in str(error) and "\x00" not in str(error)
        return
    assert parse_chain(str(chain)) == chain


def test_empty_chain_is_a_plain_copy():
    assert parse_chain(()) == Chain() == parse_chain("copy") == parse_chain([])
    assert str(Chain()) == "copy" and Chain().lossless
