"""What each op means, against formulas written out independently, and what it refuses."""

import pytest
import torch
from torch import nn

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import covers, parse_chain, rejoin


def run(text, *sources):
    return parse_chain(text).run(list(sources))


def test_llama_rope_permutation_meta_to_transformers():
    heads, head, width = 4, 12, 48
    w = torch.randn(heads * head, width)
    expected = w.view(heads, head // 2, 2, width).transpose(1, 2).reshape(heads * head, width)
    assert torch.equal(run("reshape(4,6,2,48)|transpose(1,2)|reshape(48,48)", w), expected)


def test_per_head_fused_qkv_is_taken_apart_and_rejoined():
    q, k, v = (torch.randn(4, 12, 48) for _ in range(3))
    fused = torch.stack([q, k, v], 1).reshape(144, 48)
    chains = [parse_chain(f"reshape(4,3,12,48)|select(1,{i})|reshape(48,48)") for i in range(3)]
    parts = [c.run([fused]) for c in chains]
    assert torch.equal(parts[1], k.reshape(48, 48))
    order, join = rejoin(chains, (144, 48))
    assert order == (0, 1, 2) and str(join) == "each:reshape(4,12,48)|stack(1)|reshape(144,48)"
    assert torch.equal(join.run(parts), fused)


def test_conv1d_qkv_is_transposed_then_cut():
    w = torch.randn(48, 144)
    assert torch.equal(run("transpose(0,1)|chunk(0,1,3)", w), w.t()[48:96])


def test_concat_of_unequal_sources_is_undone_by_slices():
    undo = parse_chain("concat(0)").inverse([(4, 2), (2, 2), (2, 2)])
    assert [str(c) for c in undo] == ["slice(0,0,4)", "slice(0,4,6)", "slice(0,6,8)"]


def test_experts_concat_then_reshape():
    parts = [torch.randn(64, 48) for _ in range(8)]
    assert torch.equal(run("concat(0)|reshape(4,128,48)", *parts), torch.cat(parts).reshape(4, 128, 48))


def test_each_transposes_every_source_before_the_join():
    a, b = torch.randn(3, 2), torch.randn(3, 4)
    assert torch.equal(run("each:transpose(0,1)|concat(0)", a, b), torch.cat([a.t(), b.t()]))


def test_blockperm_puts_source_block_order_j_at_j():
    blocks = [torch.full((2, 3), float(i)) for i in range(3)]
    assert torch.equal(
        run("blockperm(0;3;2,0,1)", torch.cat(blocks)), torch.cat([blocks[2], blocks[0], blocks[1]])
    )


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_weight_norm_equals_torchs_own_folding(dim):
    conv = nn.utils.weight_norm(nn.Conv1d(4, 6, 3), dim=dim)
    with torch.no_grad():
        conv.weight_g.mul_(1.7)
    folded = run(f"weight_norm({-1 if dim is None else dim})", conv.weight_g.detach(), conv.weight_v.detach())
    nn.utils.remove_weight_norm(conv)
    torch.testing.assert_close(folded, conv.weight.detach(), rtol=1e-6, atol=1e-7)


def test_weight_norm_wants_the_g_that_belongs_to_dim():
    with pytest.raises(PlanError, match=r"needs g of \[6,1,1\]"):
        parse_chain("weight_norm(0)").out_shape([(1, 1, 3), (6, 4, 3)])


def test_sumdim_keeps_the_dimension_as_timm_does():
    w = torch.randn(8, 3, 5, 5)
    assert torch.equal(run("sumdim(1)", w), w.sum(1, keepdim=True))


def test_sums_in_half_precision_do_not_overflow_on_the_way():
    w = torch.tensor([[60000.0, 60000.0, -60000.0]], dtype=torch.float16)
    assert run("sumdim(1)", w).item() == 60000.0


def test_pad_appends_zero_rows_and_needs_a_decision():
    w = torch.ones(90, 4)
    out = run("pad(0,96)", w)
    assert torch.equal(out[:90], w) and not out[90:].any()
    assert parse_chain("pad(0,96)").effect == "lossy"


def test_take_picks_rows_in_order():
    w = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(run("take(0;2,0)", w), w[[2, 0]])
    assert parse_chain("take(0;2,0)").effect == "lossy"


@pytest.mark.parametrize(
    ("text", "shapes", "why"),
    [
        ("chunk(0,1,3)", [(7, 2)], "does not divide"),
        ("chunk(0,3,3)", [(6, 2)], "counted from 0"),
        ("slice(0,2,9)", [(4, 2)], "outside"),
        ("slice(0,3,2)", [(4, 2)], "outside"),
        ("reshape(5,2)", [(3, 3)], "10 values"),
        ("squeeze(0)", [(3,)], "only size 1"),
        ("transpose(0,2)", [(3, 3)], "dimension 2"),
        ("permute(0,0)", [(3, 3)], "once"),
        ("concat(0)", [(3, 3), (3, 4)], "must agree"),
        ("stack(0)", [(3, 3), (3, 4)], "all must be equal"),
        ("pad(0,2)", [(3, 3)], "smaller"),
        ("take(0;1,1)", [(3,)], "each once"),
        ("copy", [(3,), (3,)], "leaves 2 tensors"),
        ("transpose(0,1)", [(3, 3), (3, 3)], "each:"),
        ("blockperm(0;2;1,1)", [(4,)], "once"),
        ("blockperm(0;3;2,1,0)", [(4,)], "does not divide"),
    ],
)
def test_a_chain_that_does_not_fit_says_why(text, shapes, why):
    with pytest.raises(PlanError, match=why):
        parse_chain(text).out_shape(shapes)


@pytest.mark.parametrize(
    "text",
    [
        "transpose", "transpose(0)", "transpose(0,1", "transpose(a,b)", "nope(1)", "each:concat(0)", "each:",
        "|", "reshape(1e9)", "reshape(99999999999999999999)", "add(nan)", "add(inf)", "cast(float7)",
        "__import__('os')", "transpose(0,1)\x1b[31m", "take(0)", "blockperm(0;3)", "reshape(١)",
        "|".join(["copy"] * 100),
    ],
)  # fmt: skip
def test_malformed_text_is_a_plan_error_that_shows_nothing_raw(text):
    with pytest.raises(PlanError) as caught:
        parse_chain(text)
    assert "\x1b" not in str(caught.value)


def test_parse_errors_name_the_position():
    with pytest.raises(PlanError, match="position 15"):
        parse_chain("transpose(0,1)|wat(1)")


def test_joins_of_unlike_dtypes_are_refused_and_floats_are_promoted():
    with pytest.raises(PlanError, match="different dtypes"):
        run("concat(0)", torch.ones(2), torch.ones(2, dtype=torch.int64))
    assert run("concat(0)", torch.ones(2), torch.ones(2, dtype=torch.float16)).dtype == torch.float32
    assert (
        run("stack(0)", torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)).dtype
        == torch.float32
    )


def test_chunks_cover_only_together():
    thirds = [parse_chain(f"chunk(0,{i},3)") for i in range(3)]
    assert covers(thirds, (6, 2)) and not covers(thirds[:2], (6, 2))
    assert not thirds[0].lossless and thirds[0].effect == "exact"


def test_parts_of_a_grouped_query_attention_cover_although_they_go_different_ways():
    chains = [
        parse_chain("slice(0,0,8)|reshape(2,4,3)|transpose(0,1)|reshape(8,3)"),
        parse_chain("slice(0,8,12)"),
    ]
    assert covers(chains, (12, 3))
    with pytest.raises(PlanError, match="different ways"):
        rejoin(chains, (12, 3))
