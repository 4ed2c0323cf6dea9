"""Reparametrisations and low-bit payloads: the folded layer computes what the layer did, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import parse_chain

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


def run(text, *sources):
    return parse_chain(text).run([s.detach() for s in sources])


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def stirred(module):
    """No parameter and no statistic at its initial value, so that nothing agrees by accident."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.1, 3)
        elif buffer.is_floating_point():
            buffer.normal_()
    return module.double().eval()


LAYERS = {
    "linear": lambda: (nn.Linear(4, 5), randn(2, 4)),
    "conv": lambda: (nn.Conv1d(4, 5, 3), randn(2, 4, 7)),
    "transposed": lambda: (nn.ConvTranspose2d(4, 5, 3), randn(2, 4, 6, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dim", [0, 1])
def test_weight_norm_goes_all_ways_old_new_and_plain(kind, dim):
    """The three forms of one layer; old and new only differ in names, plain is folded, and unfolds again."""
    layer, x = LAYERS[kind]()
    old = stirred(nn.utils.weight_norm(layer, dim=dim))
    due = old(x)
    state = old.state_dict()
    new = parametrizations.weight_norm(LAYERS[kind]()[0], dim=dim).double()
    renamed = {
        "weight_g": "parametrizations.weight.original0",
        "weight_v": "parametrizations.weight.original1",
    }
    new.load_state_dict({renamed.get(key, key): value for key, value in state.items()})
    torch.testing.assert_close(new(x), due)

    plain = LAYERS[kind]()[0].double()
    folded = run(f"weight_norm({dim})", state["weight_g"], state["weight_v"])
    plain.load_state_dict({"weight": folded, "bias": state["bias"]})
    torch.testing.assert_close(plain(x), due)
    plain.load_state_dict({"weight": state["weight_v"], "bias": state["bias"]})
    assert not torch.allclose(plain(x), due)

    again = nn.utils.weight_norm(LAYERS[kind]()[0].double(), dim=dim)
    size = run(f"norm({dim})", folded)
    assert size.shape == state["weight_g"].shape
    again.load_state_dict({"weight_g": size, "weight_v": folded, "bias": state["bias"]})
    torch.testing.assert_close(again(x), due)
    again.load_state_dict({"weight_g": torch.ones_like(size), "weight_v": folded, "bias": state["bias"]})
    assert not torch.allclose(again(x), due)


def test_norm_is_torchs_and_refuses_a_weight_without_direction():
    weight = randn(4, 3, 2)
    for dim in (0, 1, 2, -1):
        torch.testing.assert_close(run(f"norm({dim})", weight), torch.norm_except_dim(weight, 2, dim))
    weight[1] = 0
    with pytest.raises(PlanError, match=r"norm\(0\).*all zero"):
        run("norm(0)", weight)
    chain = parse_chain("norm(0)")
    assert chain.partial and not chain.lossless, "the direction has to go somewhere, too"


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["old", "new"])
def test_spectral_norm_in_float64_is_what_eval_computes(kind, form):
    layer, x = LAYERS[kind]()
    dim = 1 if kind == "transposed" else 0
    wrap = nn.utils.spectral_norm if form == "old" else parametrizations.spectral_norm
    normed = wrap(layer.double())
    for _ in range(3):
        normed(x)  # power iterations move u and v away from their start
    normed.eval()
    state = normed.state_dict()
    new = ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v")
    names = ("weight_orig", "weight_u", "weight_v") if form == "old" else new
    plain = LAYERS[kind]()[0].double()
    parts = [state[name] for name in names]
    plain.load_state_dict({"weight": run(f"spectral_norm({dim})", *parts), "bias": state["bias"]})
    torch.testing.assert_close(plain(x), normed(x), rtol=1e-12, atol=1e-12)
    plain.load_state_dict({"weight": parts[0], "bias": state["bias"]})
    assert not torch.allclose(plain(x), normed(x))


def test_pruned_weights_are_multiplied_by_their_mask():
    layer, x = stirred(nn.Linear(6, 4)), randn(3, 6)
    prune.l1_unstructured(layer, "weight", 0.5)
    due = layer(x)
    state = layer.state_dict()
    plain = nn.Linear(6, 4).double()
    folded = run("mul", state["weight_orig"], state["weight_mask"])
    plain.load_state_dict({"weight": folded, "bias": state["bias"]})
    assert torch.equal(plain(x), due)
    plain.load_state_dict({"weight": state["weight_orig"], "bias": state["bias"]})
    assert not torch.allclose(plain(x), due)


CONVS = [
    (nn.Conv2d, {}, "", nn.BatchNorm2d),
    (nn.Conv2d, {"groups": 2}, "", nn.BatchNorm2d),
    (nn.Conv1d, {}, "", nn.BatchNorm1d),
    (nn.ConvTranspose2d, {}, ";transposed", nn.BatchNorm2d),
    (nn.ConvTranspose2d, {"groups": 2}, ";transposed", nn.BatchNorm2d),
]


@pytest.mark.parametrize(("kind", "extra", "word", "norm"), CONVS)
@pytest.mark.parametrize("bias", [True, False])
def test_batchnorm_folds_into_every_kind_of_convolution(kind, extra, word, norm, bias):
    conv, bn = stirred(kind(4, 6, 3, bias=bias, **extra)), stirred(norm(6, eps=1e-3))
    x = randn(2, 4, *[7] * (conv.weight.ndim - 2))
    tail = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    fused = kind(4, 6, 3, **extra).double()
    weight = run(f"bn_weight(0.001{word})", conv.weight, bn.weight, bn.running_var)
    moved = run("bn_bias(0.001)", *([conv.bias] if bias else []), *tail)
    fused.load_state_dict({"weight": weight, "bias": moved})
    torch.testing.assert_close(fused(x), bn(conv(x)))
    fused.load_state_dict({"weight": conv.weight, "bias": moved})
    assert not torch.allclose(fused(x), bn(conv(x)))


def test_batchnorm_folds_into_a_linear_layer():
    linear, bn, x = stirred(nn.Linear(4, 5)), stirred(nn.BatchNorm1d(5)), randn(3, 4)
    weight = run("bn_weight(1e-05)", linear.weight, bn.weight, bn.running_var)
    bias = run("bn_bias(1e-05)", linear.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var)
    torch.testing.assert_close(F.linear(x, weight, bias), bn(linear(x)))


def test_the_eps_of_a_batchnorm_is_given_and_matters():
    weight, gamma, variance = randn(4, 3, 2, 2), randn(4), torch.full((4,), 1e-3, dtype=torch.float64)
    with_default = run("bn_weight(1e-05)", weight, gamma, variance)
    assert not torch.allclose(run("bn_weight(0.001)", weight, gamma, variance), with_default)
    for text in ("bn_weight(0)", "bn_bias(-1)", "bn_weight", "repvgg_weight(0)"):
        with pytest.raises(PlanError):
            parse_chain(text)


def test_a_transposed_convolution_whose_channels_fit_no_groups_is_refused():
    with pytest.raises(PlanError, match=r"7 channels.*\[4,3,2\]"):
        parse_chain("bn_weight(1e-05;transposed)").out_shape([(4, 3, 2), (7,), (7,)])
    with pytest.raises(PlanError, match="only the word"):
        parse_chain("bn_weight(1e-05;both)")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("identity", [True, False])
def test_repvggs_branches_become_one_convolution(groups, identity):
    eps, x = 1e-5, randn(2, 4, 6, 6)
    wide, narrow = (stirred(nn.Conv2d(4, 4, k, padding=k // 2, groups=groups, bias=False)) for k in (3, 1))
    norms = [stirred(nn.BatchNorm2d(4)) for _ in range(3 if identity else 2)]
    due = norms[0](wide(x)) + norms[1](narrow(x)) + (norms[2](x) if identity else 0)
    sources = [wide.weight, norms[0].weight, norms[0].running_var]
    sources += [narrow.weight, norms[1].weight, norms[1].running_var]
    sources += [norms[2].weight, norms[2].running_var] if identity else []
    parts = [t for bn in norms for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)]
    weight, bias = run(f"repvgg_weight({eps})", *sources), run(f"repvgg_bias({eps})", *parts)
    torch.testing.assert_close(F.conv2d(x, weight, bias, padding=1, groups=groups), due)
    half = run(f"repvgg_weight({eps})", *sources[:3])
    assert not torch.allclose(F.conv2d(x, half, bias, padding=1, groups=groups), due), "every branch counts"


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ([(4, 4, 3, 3), (4,)], "takes w, gamma, var"),
        ([(4, 4, 1, 1), (4,), (4,), (4, 4, 3, 3), (4,), (4,)], "no larger"),
        ([(4, 4, 3, 3), (4,), (4,), (4, 4, 2, 2), (4,), (4,)], "odd kernels"),
        ([(4, 3, 3, 3), (4,), (4,), (4,), (4,)], "adds the input"),
        ([(4, 4, 3, 3), (4,), (3,)], "vectors of 4"),
    ],
)
def test_branches_that_cannot_be_one_kernel_are_refused(shapes, why):
    with pytest.raises(PlanError, match=why):
        parse_chain("repvgg_weight(1e-05)").out_shape(shapes)


@pytest.mark.parametrize("scale", [16 / 4, 16 / 4**0.5], ids=["alpha/r", "rslora alpha/sqrt(r)"])
@pytest.mark.parametrize("transposed", [False, True])
def test_lora_merges_with_the_scale_of_its_config(scale, transposed):
    base, a, b, x = randn(5, 6), randn(4, 6), randn(5, 4), randn(3, 6)
    due = x @ base.t() + scale * (x @ a.t() @ b.t())
    kept, word = (base.t(), ";transposed") if transposed else (base, "")
    merged = run(f"lora({scale}{word})", kept, a, b)
    torch.testing.assert_close(x @ (merged if transposed else merged.t()), due)
    assert not torch.allclose(x @ base.t(), due)
    other = run(f"lora({16 / 4 if scale != 4 else 8}{word})", kept, a, b)
    assert not torch.allclose(x @ (other if transposed else other.t()), due), (
        "the scale is not in the tensors"
    )


def test_lora_merges_convolutions():
    base, down, up = (nn.Conv2d(*s, bias=False).double() for s in ((3, 4, 3), (3, 2, 3), (2, 4, 1)))
    x = randn(1, 3, 6, 6)
    merged = run("lora(2)", base.weight, down.weight, up.weight)
    torch.testing.assert_close(F.conv2d(x, merged), base(x) + 2 * up(down(x)))
    assert not torch.allclose(F.conv2d(x, merged), base(x))


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_scales_each_output_to_its_magnitude(transposed):
    """PEFT adds ``(m/|V| - 1) * W x + m/|V| * scale * B A x`` to the base layer's output."""
    base, a, b, m, x, scale = randn(5, 6), randn(2, 6), randn(5, 2), randn(5), randn(3, 6), 0.5
    size = torch.stack([torch.linalg.norm(row) for row in base + scale * b @ a])
    due = x @ base.t() + (m / size - 1) * (x @ base.t()) + m / size * (x @ a.t() @ b.t()) * scale
    kept, word = (base.t(), ";transposed") if transposed else (base, "")
    merged = run(f"dora({scale}{word})", kept, a, b, m)
    torch.testing.assert_close(x @ (merged if transposed else merged.t()), due)
    plain = run(f"lora({scale}{word})", kept, a, b)
    assert not torch.allclose(x @ (plain if transposed else plain.t()), due)


def test_dora_merges_convolutions():
    base, down, up = (nn.Conv2d(*s, bias=False).double() for s in ((3, 4, 3), (3, 2, 3), (2, 4, 1)))
    m, x = randn(1, 4, 1, 1), randn(1, 3, 6, 6)
    whole = base.weight + 2 * (up.weight.flatten(1) @ down.weight.flatten(1)).view_as(base.weight)
    size = whole.pow(2).sum((1, 2, 3)).sqrt().view(1, 4, 1, 1)
    due = base(x) + (m / size - 1) * base(x) + m / size * up(down(x)) * 2
    merged = run("dora(2)", base.weight, down.weight, up.weight, m)
    torch.testing.assert_close(F.conv2d(x, merged), due)
    with pytest.raises(PlanError, match="4 magnitudes"):
        run("dora(2)", base.weight, down.weight, up.weight, m.flatten()[:3])


@pytest.mark.parametrize("block", [0, 4])
@pytest.mark.parametrize("shape", [(8, 8), (10, 7)], ids=["whole blocks", "ragged"])
def test_quantised_layers_compute_with_their_scale_and_are_far_off_without(block, shape):
    """A matrix kept as fp8 codes and scales (one a block, or one a row) and read by a loop over its values."""
    weight, x = randn(*shape), randn(3, shape[1])
    tiles = [(-(-s // block) if block else 1) for s in shape] if block else [shape[0], 1]
    row, column = (block, block) if block else (1, shape[1])
    scale = torch.empty(tiles, dtype=torch.float32)
    codes = torch.empty(shape, dtype=torch.float8_e4m3fn)
    for i in range(tiles[0]):
        for j in range(tiles[1]):
            part = (slice(i * row, (i + 1) * row), slice(j * column, (j + 1) * column))
            scale[i, j] = weight[part].abs().max() / 448
            codes[part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
    made = run(f"dequant({block})", codes, scale)
    exact = torch.tensor(
        [
            [float(codes[i, j].float() * scale[i // row, j // column]) for j in range(shape[1])]
            for i in range(shape[0])
        ]
    )
    assert torch.equal(made, exact)
    due = x @ weight.t()
    assert (x @ made.double().t() - due).abs().max() < 0.1 * due.abs().max(), "what 3 bits of mantissa allow"
    assert (x @ codes.double().t() - due).abs().max() > 10 * due.abs().max(), "loads, and is off by orders"


def test_int8_rows_take_one_scale_each():
    codes = torch.tensor([[127, -127], [64, 1]], dtype=torch.int8)
    assert run("dequant(0)", codes, torch.tensor([0.5, 2.0])).tolist() == [[63.5, -63.5], [128.0, 2.0]]


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1)])
def test_a_scale_is_of_the_tensor_or_of_a_row(shape):
    codes = torch.tensor([[1.0, 2.0, -0.5]] * 4).to(torch.float8_e4m3fn)
    scale = torch.rand(shape) + 0.5
    due = codes.float() * (scale.reshape(4, 1) if scale.numel() == 4 else scale.reshape(()))
    assert torch.equal(run("dequant(0)", codes, scale), due)
    assert parse_chain("dequant(2)").out_dtype(["float8_e4m3fn", "float32"]) == "float32"


@pytest.mark.parametrize(("block", "scale"), [(2, (3, 2, 2)), (0, (3, 4, 1))])
def test_stacked_experts_are_dequantised_each_by_its_own_scales(block, scale):
    codes, scales = torch.randn(3, 4, 3).to(torch.float8_e4m3fn), torch.rand(scale) + 0.5
    whole = run(f"dequant({block})", codes, scales)
    for expert in range(3):
        assert torch.equal(whole[expert], run(f"dequant({block})", codes[expert], scales[expert]))
    with pytest.raises(PlanError, match="needs a scale of"):
        run(f"dequant({block})", codes, scales[:2])
