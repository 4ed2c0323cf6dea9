"""Packed rows in groups: what each layout means, by an attention that reads one or the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import covers, parse_chain, rejoin


def run(text, *sources):
    return parse_chain(text).run(list(sources))


def attention(q, k, v):
    """[time, heads, size] each; k and v may have fewer heads, each shared by a run of query heads."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1)


def forward_groups(x, weight, bias, kv_heads, share, size):
    """A model that keeps the query heads of a group beside their k and v (Megatron, InternLM2, Falcon)."""
    fused = (x @ weight.t() + bias).view(len(x), kv_heads, share + 2, size)
    return attention(fused[:, :, :-2].flatten(1, 2), fused[:, :, -2], fused[:, :, -1])


def forward_blocks(x, weight, bias, kv_heads, share, size):
    """A model that keeps all of q, then all of k, then all of v (LLaMA-like, nn.MultiheadAttention)."""
    fused = x @ weight.t() + bias
    q, k, v = fused.split([kv_heads * share * size, kv_heads * size, kv_heads * size], -1)
    return attention(*(t.view(len(x), -1, size) for t in (q, k, v)))


@pytest.mark.parametrize(("kv_heads", "share"), [(4, 1), (2, 3), (1, 4)])
def test_grouped_qkv_gives_the_same_attention_only_after_regrouping(kv_heads, share):
    size, width = 4, 6
    rows = kv_heads * (share + 2) * size
    weight, bias, x = (torch.randn(*s).double() for s in ((rows, width), (rows,), (5, width)))
    due = forward_groups(x, weight, bias, kv_heads, share, size)
    op = f"regroup({kv_heads};{share},1,1)"
    moved = forward_blocks(x, run(op, weight), run(op, bias), kv_heads, share, size)
    torch.testing.assert_close(moved, due)
    without = forward_blocks(x, weight, bias, kv_heads, share, size)
    assert torch.allclose(without, due) == (kv_heads == 1), "one group is the plain concat"
    back = f"interleave({kv_heads};{share},1,1)"
    assert torch.equal(run(back, run(op, weight)), weight) and torch.equal(run(back, run(op, bias)), bias)


def test_gate_and_up_in_turn_are_put_into_halves():
    weight, x = torch.randn(8, 3).double(), torch.randn(2, 3).double()
    due = torch.nn.functional.silu((x @ weight.t())[:, ::2]) * (x @ weight.t())[:, 1::2]

    def halves(w):
        gate, up = (x @ w.t()).chunk(2, -1)
        return torch.nn.functional.silu(gate) * up

    torch.testing.assert_close(halves(run("regroup(4;1,1)", weight)), due)
    assert not torch.allclose(halves(weight), due)


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 3), min_size=2, max_size=4),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_regroup_moves_whole_units_and_interleave_brings_them_back(groups, parts, unit, rank):
    """Against a list comprehension over (part, group, unit), for every rank."""
    rows = [
        (g, p, i, u)
        for g in range(groups)
        for p, n in enumerate(parts)
        for i in range(n)
        for u in range(unit)
    ]
    order = sorted(range(len(rows)), key=lambda r: (rows[r][1], rows[r][0], rows[r][2], rows[r][3]))
    source = torch.arange(len(rows) * 2**rank).reshape(len(rows), *[2] * rank)
    text = f"({groups};{','.join(map(str, parts))})"
    moved = run(f"regroup{text}", source)
    assert torch.equal(moved, source[order])
    assert torch.equal(run(f"interleave{text}", moved), source)


def test_q_k_and_v_taken_from_a_grouped_tensor_cover_it_and_go_back():
    fused = torch.arange(48.0).reshape(16, 3)
    parts = [(0, 8), (8, 12), (12, 16)]
    chains = [parse_chain(f"regroup(2;2,1,1)|slice(0,{a},{b})") for a, b in parts]
    assert covers(chains, (16, 3))
    order, join = rejoin(chains, (16, 3))
    assert str(join) == "concat(0)|interleave(2;2,1,1)"
    assert torch.equal(join.run([chains[i].run([fused]) for i in order]), fused)


@pytest.mark.parametrize(
    ("text", "shape", "why"),
    [
        ("regroup(2;1,1,1)", (10, 3), r"\[10,3\].*does not divide"),
        ("interleave(4;2,1,1)", (12,), "does not divide"),
        ("regroup(0;1,1)", (4,), "one group or more"),
        ("regroup(2;1)", (4,), "two parts or more"),
        ("regroup(2;1,0)", (4,), "two parts or more"),
        ("regroup(1;1,1)", (), "does not divide"),
    ],
)
def test_groups_that_do_not_fit_are_refused_with_the_shape(text, shape, why):
    with pytest.raises(PlanError, match=why):
        parse_chain(text).out_shape([shape])
