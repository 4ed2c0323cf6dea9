"""Ops of attention layers: two models written apart agree after the op, and differ when it is left out."""

import pytest
import torch
from torch import nn

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import covers, parse_chain, rejoin
from ckptdoctor.ops.attention import Rope

TIME, WIDTH = 5, 12


def run(text, *sources):
    return parse_chain(text).run([s.detach() for s in sources])


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def attention(q, k, v):
    """[time, heads, size] each; k and v may have fewer heads, each shared by a run of query heads."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1)


@pytest.fixture
def mha():
    """torch's own attention, every parameter away from its initial value."""
    model = nn.MultiheadAttention(WIDTH, 3, batch_first=True).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def separate(x, state, heads):
    """An attention with one linear layer each, written without torch's module."""
    q, k, v = (x @ state[f"{n}.weight"].t() + state[f"{n}.bias"] for n in "qkv")
    out = attention(*(t.view(len(x), heads, -1) for t in (q, k, v)))
    return out @ state["out.weight"].t() + state["out.bias"]


def test_in_proj_is_q_k_v_one_after_the_other(mha):
    x = randn(TIME, WIDTH)
    due, _ = mha(x[None], x[None], x[None], need_weights=False)
    state = {"out.weight": mha.out_proj.weight.detach(), "out.bias": mha.out_proj.bias.detach()}

    def split(order):
        parts = {}
        for name, i in zip("qkv", order, strict=True):
            parts[f"{name}.weight"] = run(f"chunk(0,{i},3)", mha.in_proj_weight)
            parts[f"{name}.bias"] = run(f"chunk(0,{i},3)", mha.in_proj_bias)
        return parts

    torch.testing.assert_close(separate(x, {**state, **split((0, 1, 2))}, 3), due[0])
    assert not torch.allclose(separate(x, {**state, **split((1, 0, 2))}, 3), due[0]), "the order matters"
    parts = split((0, 1, 2))
    back = run("concat(0)", *(parts[f"{n}.weight"] for n in "qkv"))
    assert torch.equal(back, mha.in_proj_weight)


def test_unequal_parts_of_grouped_queries_are_slices():
    """One projection for 4 query heads and 2 key and value heads, against three projections."""
    size, heads, kv = 3, 4, 2
    fused, x = randn((heads + 2 * kv) * size, WIDTH), randn(TIME, WIDTH)
    cuts = [(0, 12), (12, 18), (18, 24)]
    w = [run(f"slice(0,{a},{b})", fused) for a, b in cuts]
    q, k, v = (x @ fused.t()).view(TIME, -1, size).split([heads, kv, kv], 1)
    due = attention(q, k, v)
    torch.testing.assert_close(attention(*((x @ t.t()).view(TIME, -1, size) for t in w)), due)
    thirds = [fused[i * 8 : i * 8 + 8] for i in range(3)]
    assert [tuple(t.shape) for t in thirds] != [tuple(t.shape) for t in w], "equal parts have other shapes"
    assert torch.equal(run("concat(0)", *w), fused)


def rotate(x, rotary, interleaved):
    """[time, heads, size] turned by its position in the first ``rotary`` numbers of each head."""
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(0, rotary, 2) / rotary)
    cos, sin = (t[:, None].double() for t in (angle.cos(), angle.sin()))
    turned, rest = x[..., :rotary], x[..., rotary:]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = (a * cos - b * sin, a * sin + b * cos)
    done = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([done, rest], -1)


def rotary_attention(x, wq, wk, wv, size, rotary, interleaved):
    q, k, v = ((x @ w.t()).view(len(x), -1, size) for w in (wq, wk, wv))
    return attention(rotate(q, rotary, interleaved), rotate(k, rotary, interleaved), v)


@pytest.mark.parametrize(
    ("heads", "kv", "size", "rotary"), [(4, 4, 6, 6), (4, 2, 6, 6), (3, 3, 8, 4), (4, 1, 10, 2)]
)
def test_rotary_layouts_agree_after_rope_and_only_with_each_tensors_own_heads(heads, kv, size, rotary):
    """All heads, grouped queries (k has its own head count), partial rotary (GPT-J <-> GPT-NeoX)."""
    x, wq = randn(TIME, WIDTH), randn(heads * size, WIDTH)
    wk, wv = randn(kv * size, WIDTH), randn(kv * size, WIDTH)
    rows = "" if rotary == size else f";{rotary}"
    due = rotary_attention(x, wq, wk, wv, size, rotary, True)
    moved = [run(f"rope({n};half{rows})", w) for n, w in ((heads, wq), (kv, wk))]
    torch.testing.assert_close(rotary_attention(x, *moved, wv, size, rotary, False), due)
    back = [run(f"rope({n};interleaved{rows})", w) for n, w in ((heads, moved[0]), (kv, moved[1]))]
    assert torch.equal(back[0], wq) and torch.equal(back[1], wk)
    if rotary > 2:  # two rows are one pair in both layouts
        assert not torch.allclose(rotary_attention(x, wq, wk, wv, size, rotary, False), due)
    if kv != heads and rotary == size and wk.shape[0] % (2 * heads) == 0:
        wrong = run(f"rope({heads};half)", wk)
        assert not torch.allclose(rotary_attention(x, moved[0], wrong, wv, size, rotary, False), due)


def test_rope_takes_biases_and_refuses_odd_rows():
    bias = torch.arange(12.0)
    assert run("rope(2;half;4)", bias).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    assert str(Rope(2, "half", 4).undo((12,))) == "rope(2;interleaved;4)"
    for text, why in [
        ("rope(2;half;3)", "3 rows"),
        ("rope(2;half;8)", "8 rows"),
        ("rope(5;half)", "5 heads"),
    ]:
        with pytest.raises(PlanError, match=why + r".*\[12\]"):
            parse_chain(text).out_shape([(12,)])
    for text in ("rope(2)", "rope(2;third)", "rope(2;half;)", "rope(2;half;0)", "rope(2;half;4;4)"):
        with pytest.raises(PlanError):
            parse_chain(text)


def beit(x, weight, bias, heads):
    q, k, v = (t.view(len(x), heads, -1) for t in (x @ weight.t() + bias).chunk(3, -1))
    return attention(q, k, v)


def test_q_and_v_bias_become_one_bias_with_zeros_for_k_and_come_back():
    x, weight, q_bias, v_bias = randn(TIME, WIDTH), randn(3 * WIDTH, WIDTH), randn(WIDTH), randn(WIDTH)
    q, k, v = (x @ weight.t()).chunk(3, -1)
    due = attention(*(t.view(TIME, 3, -1) for t in (q + q_bias, k, v + v_bias)))
    fused = run("concat_zero(0,1)", q_bias, v_bias)
    torch.testing.assert_close(beit(x, weight, fused, 3), due)
    wrong = torch.cat([q_bias, v_bias, torch.zeros(WIDTH)])
    assert not torch.allclose(beit(x, weight, wrong, 3), due)
    undo = parse_chain("concat_zero(0,1)").inverse([(WIDTH,), (WIDTH,)])
    assert [str(c) for c in undo] == ["chunk_zero(0,0,3,1)", "chunk_zero(0,2,3,1)"]
    assert torch.equal(undo[0].run([fused]), q_bias) and torch.equal(undo[1].run([fused]), v_bias)


def test_a_k_bias_that_is_not_zero_is_never_dropped():
    fused = torch.zeros(12)
    fused[6] = -0.25
    for i in (0, 2):
        with pytest.raises(PlanError, match=r"chunk_zero.*not zero.*0\.25"):
            run(f"chunk_zero(0,{i},3,1)", fused)
    fused[6] = float("nan")
    with pytest.raises(PlanError, match="not zero"):
        run("chunk_zero(0,0,3,1)", fused)


def test_both_parts_beside_the_zeros_cover_the_source_and_one_does_not():
    q, v = parse_chain("chunk_zero(0,0,3,1)"), parse_chain("chunk_zero(0,2,3,1)")
    assert covers([v, q], (12,)) and not covers([q], (12,)) and not covers([q, q], (12,))
    assert not covers([q, parse_chain("chunk_zero(0,1,3,2)")], (12,))
    order, join = rejoin([v, q], (12,))
    assert order == (1, 0) and str(join) == "concat_zero(0,1)"


def test_dinov3s_masked_bias_is_the_product():
    """Its linear layer multiplies the bias by a mask of ones with zeros for k."""
    x, weight, bias = randn(TIME, WIDTH), randn(3 * WIDTH, WIDTH), randn(3 * WIDTH)
    mask = torch.ones_like(bias)
    mask[WIDTH : 2 * WIDTH] = 0
    due = nn.functional.linear(x, weight, bias * mask)
    torch.testing.assert_close(nn.functional.linear(x, weight, run("mul", bias, mask)), due)
    assert not torch.allclose(nn.functional.linear(x, weight, bias), due)


def test_heads_kept_apart_become_rows_of_a_linear_layer():
    """[heads, width, size] as in TransformerLens (``W_Q``), against the rows of one projection."""
    x, per_head = randn(TIME, WIDTH), randn(3, WIDTH, 4)
    due = torch.einsum("te,hed->thd", x, per_head).flatten(1)
    chain = parse_chain(f"permute(0,2,1)|reshape(12,{WIDTH})")
    torch.testing.assert_close(x @ chain.run([per_head]).t(), due)
    assert not torch.allclose(x @ run(f"reshape(12,{WIDTH})", per_head).t(), due)
    (undo,) = chain.inverse([(3, WIDTH, 4)])
    assert torch.equal(undo.run([chain.run([per_head])]), per_head)
