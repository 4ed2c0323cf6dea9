"""Ops that compute, against torch's own implementations or a forward pass, and wrong without the op."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import parse_chain


def run(text, *sources):
    return parse_chain(text).run([s.detach() for s in sources])


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 5), nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(3, 5, 3)], ids=repr
)
def test_spectral_norm_folds_to_what_torch_evaluates(layer):
    dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    old = nn.utils.spectral_norm(layer).eval()
    x = torch.randn(2, 4) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 6, 6)
    due = old(x)
    state = old.state_dict()
    folded = run(f"spectral_norm({dim})", state["weight_orig"], state["weight_u"], state["weight_v"])
    nn.utils.remove_spectral_norm(old)
    assert not torch.allclose(old.weight, state["weight_orig"])
    with torch.no_grad():
        old.weight.copy_(folded)
    torch.testing.assert_close(old(x), due, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_batchnorm_folds_into_the_convolution(bias):
    conv, norm = nn.Conv2d(3, 5, 3, bias=bias).double(), nn.BatchNorm2d(5, eps=1e-3).double().eval()
    with torch.no_grad():
        for t in (norm.weight, norm.bias, norm.running_mean):
            t.normal_()
        norm.running_var.uniform_(0.1, 3)
    fused = nn.Conv2d(3, 5, 3).double()
    tail = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    with torch.no_grad():
        fused.weight.copy_(run("bn_weight(0.001)", conv.weight, norm.weight, norm.running_var))
        fused.bias.copy_(run("bn_bias(0.001)", *([conv.bias] if bias else []), *tail))
    x = torch.randn(2, 3, 7, 7).double()
    torch.testing.assert_close(fused(x), norm(conv(x)))
    other = run("bn_weight(1e-05)", conv.weight, norm.weight, norm.running_var)
    assert not torch.allclose(other, fused.weight), "eps matters"
    with pytest.raises(PlanError, match="above 0"):
        parse_chain("bn_weight(0)")


def test_lora_merges_to_the_adapters_forward_pass():
    base, a, b = nn.Linear(6, 4, bias=False).double(), torch.randn(2, 6).double(), torch.randn(4, 2).double()
    x = torch.randn(3, 6).double()
    due = base(x) + 0.5 * (x @ a.t() @ b.t())
    torch.testing.assert_close(x @ run("lora(0.5)", base.weight, a, b).t(), due)
    torch.testing.assert_close(x @ run("lora(0.5;transposed)", base.weight.t(), a, b), due)
    assert not torch.allclose(base(x), due)


def test_lora_merges_convolutions():
    base, down, up = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3), nn.Conv2d(2, 4, 1)
    for layer in (base, down, up):
        layer.double().bias.data.zero_()
    x = torch.randn(1, 3, 6, 6).double()
    merged = nn.Conv2d(3, 4, 3, bias=False).double()
    merged.weight.data = run("lora(2)", base.weight, down.weight, up.weight)
    torch.testing.assert_close(merged(x), base(x) + 2 * up(down(x)))


def attend(q, k, interleaved):
    """Scores of rotary attention, written for one layout or the other. q, k: [time, heads, size]."""
    time, _, size = q.shape
    angle = torch.arange(time)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    cos, sin = angle.cos()[:, None].double(), angle.sin()[:, None].double()

    def turn(x):
        a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos])

    return torch.einsum("cthd,cshd->hts", turn(q), turn(k))


def test_rope_keeps_the_attention_scores_and_without_it_they_differ():
    heads, size, width = 3, 8, 10
    wq, wk = (torch.randn(heads * size, width).double() for _ in range(2))
    x = torch.randn(5, width).double()

    def scores(q, k, interleaved):
        return attend((x @ q.t()).view(5, heads, size), (x @ k.t()).view(5, heads, size), interleaved)

    due = scores(wq, wk, True)
    moved = [run(f"rope({heads};half)", w) for w in (wq, wk)]
    torch.testing.assert_close(scores(*moved, False), due)
    assert not torch.allclose(scores(wq, wk, False), due)
    same = run("reshape(3,4,2,10)|transpose(1,2)|reshape(24,10)", wq)
    assert torch.equal(moved[0], same) and torch.equal(run("rope(3;interleaved)", same), wq)


def test_beit_bias_has_a_zero_k():
    q, v = torch.randn(4), torch.randn(4)
    assert torch.equal(run("concat_zero(0,1)", q, v), torch.cat([q, torch.zeros(4), v]))


def test_position_embeddings_keep_their_prefix_and_are_resampled_by_size():
    table = torch.randn(1, 17, 6)
    out = run("resize_grid(1;4,4;8,8)", table)
    image = table[:, 1:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    due = interpolate(image, (8, 8), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    assert torch.equal(out[:, :1], table[:, :1])
    torch.testing.assert_close(out[:, 1:], due)
    assert not torch.allclose(run("resize_grid(1;4,4;8,8;antialias)", table), out)
    assert run("resize_grid(0;3,3;5,5)", torch.randn(9, 2).half()).dtype == torch.float16


def test_a_stem_for_more_channels_gives_the_same_on_equal_channels():
    w = torch.randn(4, 3, 2, 2).double()
    torch.testing.assert_close(run("tile(1,6)", w).sum(1), w.sum(1))
    torch.testing.assert_close(run("tile(1,5)", w), w[:, [0, 1, 2, 0, 1]] * 3 / 5)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1)])
def test_fp8_weights_are_scaled(shape):
    q = torch.tensor([[1.0, 2.0, -0.5]] * 4).to(torch.float8_e4m3fn)
    scale = torch.rand(shape) + 0.5
    due = q.float() * (scale.reshape(4, 1) if scale.numel() == 4 else scale.reshape(()))
    assert torch.equal(run("dequant(0)", q, scale), due)


def test_block_scales_are_cut_at_the_border():
    q, scale = torch.ones(5, 3).to(torch.float8_e4m3fn), torch.arange(6.0).reshape(3, 2)
    out = run("dequant(2)", q, scale)
    assert all(out[i, j] == scale[i // 2, j // 2] for i in range(5) for j in range(3))
    assert parse_chain("dequant(2)").out_dtype(["float8_e4m3fn", "float32"]) == "float32"
