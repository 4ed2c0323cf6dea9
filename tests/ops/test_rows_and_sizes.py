"""Lossy ops: rows chosen or added, image sizes and channel counts changed; values against their sources'."""

import math

import pytest
import torch
from torch.nn import functional as F

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import parse_chain, read_rows


def run(text, *sources):
    return parse_chain(text).run(list(sources))


def timm_resample(table, new, old, prefix, antialias):
    """What timm's ``resample_abs_pos_embed`` does, written out again."""
    kept, grid = table[:, :prefix], table[:, prefix:].float()
    image = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bicubic", antialias=antialias)
    return torch.cat([kept, image.permute(0, 2, 3, 1).reshape(1, -1, table.shape[-1]).to(table.dtype)], 1)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((4, 6), (3, 9)), ((6, 6), (3, 3))])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_position_embeddings_are_resampled_as_timm_does(prefix, old, new, antialias, dtype):
    table = torch.randn(1, prefix + math.prod(old), 6).to(dtype)
    text = f"resize_grid({prefix};{old[0]},{old[1]};{new[0]},{new[1]}{';antialias' * antialias})"
    assert torch.equal(run(text, table), timm_resample(table, new, old, prefix, antialias))
    assert parse_chain(text).effect == "lossy"


def test_dinov2_asks_by_factor_and_lands_a_little_elsewhere():
    """``interpolate_pos_encoding`` adds 0.1 before it divides: near, but not the same samples."""
    table = torch.randn(1, 1 + 37 * 37, 4)
    image = table[:, 1:].reshape(1, 37, 37, 4).permute(0, 3, 1, 2)
    factor = F.interpolate(image, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    assert factor.shape[-2:] == (16, 16)
    ours = run("resize_grid(1;37,37;16,16)", table)[:, 1:].reshape(1, 16, 16, 4).permute(0, 3, 1, 2)
    by_size = F.interpolate(image, size=(16, 16), mode="bicubic")
    assert torch.equal(ours, by_size)
    smooth = torch.linspace(0, 1, 37).expand(1, 1, 37, 37)
    near = [
        F.interpolate(smooth, mode="bicubic", **how)
        for how in ({"size": (16, 16)}, {"scale_factor": 16.1 / 37})
    ]
    assert 0 < (near[0] - near[1]).abs().max() < 0.02


def test_beits_relative_table_keeps_the_three_rows_behind_the_grid():
    table = torch.randn(25 + 3, 4)
    out = run("resize_grid(0;5,5;9,9;last=3)", table)
    image = table[:-3].t().reshape(1, 4, 5, 5)
    due = F.interpolate(image, (9, 9), mode="bicubic", align_corners=False).view(4, 81).t()
    assert torch.equal(out[:-3], due) and torch.equal(out[-3:], table[-3:])
    with pytest.raises(PlanError, match=r"0 \+ 5 \* 5 tokens.*\[28,4\]"):
        run("resize_grid(0;5,5;9,9)", table)


def test_one_dimension_is_a_grid_of_height_one():
    table = torch.randn(7, 3)
    line = run("resize_grid(0;1,7;1,10;bilinear)", table)
    due = F.interpolate(table.t()[None], 10, mode="linear", align_corners=False)[0].t()
    torch.testing.assert_close(line, due)
    kept = run("resize_grid(2;1,5;1,8)", table)
    assert torch.equal(kept[:2], table[:2]) and kept.shape == (10, 3)


def test_a_table_kept_as_an_image_is_reshaped_around_the_op():
    """VOLO's [1, h, w, C] and Swin's [heads, h, w]."""
    volo = torch.randn(1, 4, 4, 6)
    out = run("reshape(1,16,6)|resize_grid(0;4,4;7,7)|reshape(1,7,7,6)", volo)
    due = F.interpolate(volo.permute(0, 3, 1, 2), (7, 7), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(out, due)


@pytest.mark.parametrize(
    "text",
    [
        "resize_grid(1;2,3)", "resize_grid(1;2,3;4)", "resize_grid(1;2,3;4,5;nearest)",
        "resize_grid(1;2,3;4,5;bilinear;antialias)", "resize_grid(1;2,3;4,5;antialias;antialias)",
        "resize_grid(1;2,3;4,5;last=x)", "resize_grid(1;2,3;4,5;antialias;last=3)",
    ],
)  # fmt: skip
def test_resize_texts_that_are_not_understood_are_refused(text):
    with pytest.raises(PlanError):
        parse_chain(text)


def adapt_input_conv(weight, channels):
    """timm's convention, written out again: sum to grey, else repeat and scale by 3 / channels."""
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    return (repeated * (3 / channels)).to(weight.dtype)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_stem_is_fitted_to_other_channels_as_timm_does(channels, dtype):
    weight = torch.randn(5, 3, 2, 2).to(dtype)
    text = "sumdim(1)" if channels == 1 else f"tile(1,{channels})"
    assert torch.equal(run(text, weight), adapt_input_conv(weight, channels))


def test_grey_images_give_the_same_through_a_fitted_stem():
    weight, grey = torch.randn(5, 3, 3, 3).double(), torch.randn(2, 1, 8, 8).double()
    colour = grey.expand(2, 3, 8, 8)
    due = F.conv2d(colour, weight)
    torch.testing.assert_close(F.conv2d(grey, run("sumdim(1)", weight)), due)
    one = torch.randn(5, 1, 3, 3).double()
    torch.testing.assert_close(F.conv2d(colour, run("tile(1,3)", one)), F.conv2d(grey, one))
    assert not torch.allclose(F.conv2d(colour, one.expand(5, 3, 3, 3)), F.conv2d(grey, one)), "unscaled"


def test_added_tokens_get_zeros_or_the_mean():
    table = torch.randn(5, 4)
    assert torch.equal(run("pad(0,7)", table)[5:], torch.zeros(2, 4))
    mean = run("pad_mean(0,7)", table)
    assert torch.equal(mean[:5], table) and torch.equal(mean[5:], table.mean(0).expand(2, 4))
    hidden = torch.randn(4)
    assert (mean @ hidden)[5:].max() <= (table @ hidden).max(), "the mean never wins; zeros can"
    half = torch.full((3, 1), 40000.0, dtype=torch.float16)
    assert run("pad_mean(0,4)", half)[3].item() == 40000.0, "summed in float32"
    with pytest.raises(PlanError, match="mean of"):
        parse_chain("pad_mean(0,4)").out_shape([(0, 4)])


def test_a_padded_vocabulary_is_cropped_by_a_slice():
    table = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(run("slice(0,0,4)", run("pad(0,6)", table[:4])), table[:4])


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("4\n0\n7\n", (4, 0, 7)),
        ("old,name\n4,cat\n0,dog\n", (4, 0)),
        ("# classes we keep\n4  # cat\n\n0\n", (4, 0)),
        ("\ufeff3\r\n1\r\n", (3, 1)),
        ('"2","two, or so"\n', (2,)),
    ],
)
def test_rows_are_read_from_a_file_in_its_order(tmp_path, text, rows):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    assert read_rows(path) == rows
    op = f"take(0;{','.join(map(str, rows))})"
    weight = torch.arange(16.0).reshape(8, 2)
    assert torch.equal(run(op, weight), weight[list(rows)])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"1\n-2\n", r"rows.csv:2: expected a row number.*'-2'"),
        (b"1\ncat\n", r"rows.csv:2: .*'cat'"),
        (b"0.5\n", r"rows.csv:1: .*'0.5'"),
        (b"cat 1\n", r"rows.csv:1: .*'cat 1'"),
        (b"3\n1\n3\n", r"rows.csv:3: row 3 is there already, in line 1"),
        (b"# nothing\n", "no row numbers"),
        (b"", "no row numbers"),
        (b"\xff\xfe1", "cannot be read"),
    ],
)
def test_a_list_of_rows_that_is_not_one_is_refused_with_its_line(tmp_path, data, why):
    path = tmp_path / "rows.csv"
    path.write_bytes(data)
    with pytest.raises(PlanError, match=why):
        read_rows(path)
    with pytest.raises(PlanError, match="cannot be read"):
        read_rows(tmp_path / "other.csv")
