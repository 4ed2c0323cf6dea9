"""Ops of linear and convolution layers: two models written apart agree after the op, and differ without it."""

import pytest
import torch
from torch.nn import functional as F

from ckptdoctor.ops import parse_chain


def run(text, *sources):
    return parse_chain(text).run([s.detach() for s in sources])


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_conv1d_of_gpt2_is_the_transpose_also_where_it_is_square():
    for shape in [(4, 6), (5, 5)]:
        weight, bias, x = randn(*shape), randn(shape[1]), randn(2, shape[0])
        due = torch.addmm(bias, x, weight)  # what transformers' Conv1D computes
        torch.testing.assert_close(F.linear(x, run("transpose(0,1)", weight), bias), due)
    assert not torch.allclose(F.linear(x, weight, bias), due), "a square one loads either way"
    assert not torch.allclose(F.linear(x, run("reshape(5,5)", weight), bias), due)


def test_gate_and_up_are_packed_in_one_of_two_orders():
    gate, up, x = randn(6, 4), randn(6, 4), randn(3, 4)
    due = F.silu(x @ gate.t()) * (x @ up.t())

    def packed(w, gate_first=True):
        a, b = (x @ w.t()).chunk(2, -1)
        return F.silu(a) * b if gate_first else a * F.silu(b)

    both = run("concat(0)", gate, up)
    torch.testing.assert_close(packed(both), due)
    assert not torch.allclose(packed(both, gate_first=False), due)
    torch.testing.assert_close(packed(run("blockperm(0;2;1,0)", both), gate_first=False), due)


def test_the_gates_of_an_lstm_are_blocks_in_an_order_of_its_own():
    """torch has input, forget, cell, output; a cell written with input, cell, forget, output (as Haiku's)."""
    x, h, c, w, u, b = randn(2, 3), randn(2, 4), randn(2, 4), randn(16, 3), randn(16, 4), randn(16)
    i, g, f, o = (x @ w.t() + h @ u.t() + b).chunk(4, -1)
    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
    due = o.sigmoid() * cell.tanh()
    lstm = torch.nn.LSTMCell(3, 4).double()

    def fill(order):
        moved = [run(f"blockperm(0;4;{order})", t) for t in (w, u, b)]
        names = dict(zip(("weight_ih", "weight_hh", "bias_ih"), moved, strict=True))
        lstm.load_state_dict({**names, "bias_hh": torch.zeros(16)})
        return lstm(x, (h, c))

    torch.testing.assert_close(fill("0,2,1,3"), (due, cell))
    assert not torch.allclose(fill("0,1,2,3")[0], due)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_list_of_experts_is_stacked_transposed_where_the_stack_has_inputs_first(transposed):
    """Mixtral's ``experts.i.w1`` against one tensor per layer; gpt-oss and llama4 keep [expert, in, out]."""
    experts, x = [randn(5, 4) for _ in range(3)], randn(2, 4)
    due = torch.stack([F.linear(x, w) for w in experts])
    text = "each:transpose(0,1)|stack(0)" if transposed else "stack(0)"
    chain = parse_chain(text)
    stacked = chain.run(experts)
    torch.testing.assert_close(torch.einsum("ti,eio->eto" if transposed else "ti,eoi->eto", x, stacked), due)
    wrong = run(text, *experts[::-1])
    assert not torch.allclose(torch.einsum("ti,eio->eto" if transposed else "ti,eoi->eto", x, wrong), due)
    for expert, undo in zip(experts, chain.inverse([(5, 4)] * 3), strict=True):
        assert torch.equal(undo.run([stacked]), expert)


ORDERS = ["chw", "hwc", "whc", "cwh", "wch", "hcw"]


@pytest.mark.parametrize("before", ORDERS)
@pytest.mark.parametrize("after", ORDERS)
def test_columns_follow_the_order_in_which_the_image_was_flattened(before, after):
    sizes = {"c": 2, "h": 3, "w": 4}
    image, weight = randn(2, 3, 4), randn(5, 24)

    def flat(order):
        return image.permute(["chw".index(letter) for letter in order]).flatten()

    due = weight @ flat(before)
    chain = parse_chain(f"flatten_order(1;{before};{','.join(str(sizes[s]) for s in before)};{after})")
    moved = chain.run([weight])
    torch.testing.assert_close(moved @ flat(after), due)
    assert torch.allclose(weight @ flat(after), due) == (before == after)
    assert torch.equal(chain.inverse([(5, 24)])[0].run([moved]), weight)


def swin_official(x, norm, reduction):
    """[h, w, c]: four slices, one after the other."""
    parts = [x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]]
    return F.linear(F.layer_norm(torch.cat(parts, -1), norm[0].shape, *norm), reduction)


def swin_mmdet(x, norm, reduction):
    """The same by nn.Unfold, which has the channels outside."""
    unfolded = F.unfold(x.permute(2, 0, 1)[None], 2, stride=2)[0].t()
    return F.linear(F.layer_norm(unfolded, norm[0].shape, *norm), reduction).view(2, 2, -1)


def test_swins_patch_merging_has_its_columns_in_another_order_in_mmdet():
    c = 3
    x, norm, reduction = randn(4, 4, c), (randn(4 * c), randn(4 * c)), randn(2 * c, 4 * c)
    due = swin_official(x, norm, reduction)
    order = f"blockperm(DIM;4;0,2,1,3)|flatten_order(DIM;pc;4,{c};cp)"
    moved = [run(order.replace("DIM", "0"), t) for t in norm]
    columns = run(order.replace("DIM", "1"), reduction)
    torch.testing.assert_close(swin_mmdet(x, moved, columns), due)
    assert not torch.allclose(swin_mmdet(x, norm, reduction), due)
    assert not torch.allclose(swin_mmdet(x, norm, columns), due), "the norm moves too"
    (undo,) = parse_chain(order.replace("DIM", "1")).inverse([(2 * c, 4 * c)])
    assert torch.equal(undo.run([columns]), reduction)


def sparse_conv(x, kernel, channels_last):
    """A dense 3-D convolution written over offsets; spconv 1 keeps [k,k,k,in,out], spconv 2 [out,k,k,k,in]."""
    k, out = kernel.shape[1], 0
    for a, b, c in torch.cartesian_prod(*[torch.arange(k)] * 3).tolist():
        w = kernel[:, a, b, c, :].t() if channels_last else kernel[a, b, c]
        crop = x[:, a : a + 3, b : b + 3, c : c + 3]
        out = out + torch.einsum("izyx,io->ozyx", crop, w)
    return out


def test_spconvs_kernels_are_permuted_not_reshaped():
    kernel, x = randn(3, 3, 3, 2, 4), randn(2, 5, 5, 5)
    due = sparse_conv(x, kernel, channels_last=False)
    moved = run("permute(4,0,1,2,3)", kernel)
    torch.testing.assert_close(sparse_conv(x, moved, channels_last=True), due)
    torch.testing.assert_close(F.conv3d(x[None], run("permute(4,3,0,1,2)", kernel))[0], due)
    assert not torch.allclose(sparse_conv(x, run("reshape(4,3,3,3,2)", kernel), channels_last=True), due)
    assert torch.equal(run("permute(1,2,3,4,0)", moved), kernel)


def test_kernels_of_tf_and_jax_have_their_channels_last():
    """HWIO, written as a sum over offsets, against torch's OIHW; depthwise kernels are HW, channel, multiplier."""
    kernel, x = randn(3, 3, 2, 4), randn(5, 5, 2)
    due = sum(x[a : a + 3, b : b + 3] @ kernel[a, b] for a in range(3) for b in range(3)).permute(2, 0, 1)
    image = x.permute(2, 0, 1)[None]
    torch.testing.assert_close(F.conv2d(image, run("permute(3,2,0,1)", kernel))[0], due)
    assert not torch.allclose(F.conv2d(image, run("reshape(4,2,3,3)", kernel))[0], due)
    depthwise = randn(3, 3, 2, 1)
    due = sum(x[a : a + 3, b : b + 3] * depthwise[a, b, :, 0] for a in range(3) for b in range(3))
    moved = run("permute(2,3,0,1)", depthwise)
    torch.testing.assert_close(F.conv2d(image, moved, groups=2)[0], due.permute(2, 0, 1))


@pytest.mark.parametrize("kernel", [(5, 4, 1, 1), (5, 4, 1)])
def test_a_kernel_of_size_one_is_a_linear_layer(kernel):
    weight, x = randn(*kernel), randn(2, 4)
    linear = run("|".join(["squeeze(-1)"] * (len(kernel) - 2)), weight)
    conv = F.conv2d if len(kernel) == 4 else F.conv1d
    due = conv(x.view(2, 4, *[1] * (len(kernel) - 2)), weight).flatten(1)
    torch.testing.assert_close(F.linear(x, linear), due)
    back = run("|".join(["unsqueeze(-1)"] * (len(kernel) - 2)), linear)
    assert torch.equal(back, weight)


def test_a_patch_embedding_by_conv3d_is_a_linear_layer_over_the_flat_patch():
    weight, patch = randn(5, 3, 2, 4, 4), randn(1, 3, 2, 4, 4)
    due = F.conv3d(patch, weight).flatten()
    torch.testing.assert_close(run("reshape(5,-1)", weight) @ patch.flatten(), due)
    hwc = patch[0].permute(1, 2, 3, 0).flatten()
    moved = run("reshape(5,-1)|flatten_order(1;cthw;3,2,4,4;thwc)", weight)
    torch.testing.assert_close(moved @ hwc, due)
    assert not torch.allclose(run("reshape(5,-1)", weight) @ hwc, due)


def rms(x, scale):
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * scale


def test_gemmas_norm_keeps_its_weight_minus_one():
    x, weight = randn(3, 6), randn(6)
    due = rms(x, 1 + weight)  # a model that adds the one itself
    torch.testing.assert_close(rms(x, run("add(1)", weight)), due)
    assert not torch.allclose(rms(x, weight), due)
    torch.testing.assert_close(rms(x, 1 + run("add(-1)", run("add(1)", weight))), due)


def test_layer_scale_is_a_vector_or_a_map_of_single_pixels():
    image, scale = randn(2, 3, 4, 4), randn(3)
    due = image * scale[None, :, None, None]
    torch.testing.assert_close(image * run("reshape(3,1,1)", scale), due)
    assert run("reshape()", torch.ones(1)).shape == () and run("reshape(1)", torch.ones(())).shape == (1,)


def test_complex_rotations_are_pairs_and_never_a_cast():
    angles = torch.polar(torch.ones(3, 2, dtype=torch.float64), randn(3, 2))
    x = randn(3, 2, 2)
    due = torch.view_as_real(torch.view_as_complex(x) * angles)
    pairs = run("as_real", angles)
    a, b = x.unbind(-1)
    cos, sin = pairs.unbind(-1)
    torch.testing.assert_close(torch.stack([a * cos - b * sin, a * sin + b * cos], -1), due)
    assert not torch.allclose(x * angles.real[..., None], due), (
        "dropping the imaginary part is another function"
    )
    assert torch.equal(run("as_complex", pairs), angles)
    assert torch.equal(run("as_real", angles.conj()), torch.view_as_real(angles.conj().resolve_conj()))


@pytest.mark.parametrize(
    ("text", "dtype", "why"), [("as_real", "float32", "complex"), ("as_complex", "int64", "float")]
)
def test_numbers_of_the_wrong_kind_are_refused_from_dtypes_and_from_values(text, dtype, why):
    from ckptdoctor.errors import PlanError

    chain = parse_chain(text)
    with pytest.raises(PlanError, match=f"{why}.*{dtype}"):
        chain.out_dtype([dtype])
    with pytest.raises(PlanError, match=f"{why}.*{dtype}"):
        chain.run([torch.ones(3, 2, dtype=getattr(torch, dtype))])
