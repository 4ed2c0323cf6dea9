"""Casts are judged by values: what loses something refuses and rolls back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckptdoctor.casts import CAST_CLASSES, cast_class
from ckptdoctor.errors import VerifyError
from ckptdoctor.loading import apply_to_model
from ckptdoctor.targets.module import snapshot
from ckptdoctor.verify import casting, classify
from tests.apply.fakes import Source, identity, picture, same_picture

f16, f32, f64, bf16 = torch.float16, torch.float32, torch.float64, torch.bfloat16
i64, i32, u8, b1 = torch.int64, torch.int32, torch.uint8, torch.bool
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True, params=[1 << 20, 2], ids=["whole", "in parts"])
def block(request, monkeypatch):
    monkeypatch.setattr(casting, "BLOCK", request.param)


TABLE = [
    ([1.0, -0.5, NAN, INF], f32, f16, "lossless"),
    ([0.1, 0.2], f32, f16, "rounding"),
    ([0.1, 0.2], f32, bf16, "rounding"),
    ([0.1, 0.2], f64, f32, "rounding"),
    ([1e6], f32, f16, "range"),
    ([1e300], f64, f32, "range"),
    ([1e-9, 1.0], f32, f16, "range"),
    ([1e-9] * 3, f32, f16, "range"),
    ([1e-9] + [1.0] * 5000, f32, f16, "rounding"),
    ([1e-9] + [1e-6] * 5000, f32, f16, "range"),
    ([1e39], f64, bf16, "range"),
    ([0.1, 3.0], f16, f32, "lossless"),
    ([1.0, 2.0, -3.0], f32, i64, "lossless"),
    ([1.9], f32, i64, "truncation"),
    ([NAN], f32, i64, "truncation"),
    ([1e20], f32, i64, "truncation"),
    ([5, -7], i64, i32, "lossless"),
    ([2**40], i64, i32, "range"),
    ([-1], i64, torch.uint64, "range"),
    ([3], i64, f32, "lossless"),
    ([2**24 + 1], i64, f32, "rounding"),
    ([70000], i64, f16, "range"),
    ([0, 1], i64, b1, "lossless"),
    ([0, 2], i64, b1, "truncation"),
    ([0.0, 1.0], f32, b1, "lossless"),
    ([True, False], b1, f32, "lossless"),
    ([3], u8, f32, "payload"),
    ([1.5], torch.float8_e4m3fn, f32, "payload"),
    ([1000.0], f32, torch.float8_e4m3fn, "range"),
    ([1 + 2j], torch.complex64, f32, "truncation"),
    ([1 + 0j], torch.complex64, f32, "lossless"),
    ([0.1 + 2j], torch.complex128, torch.complex64, "rounding"),
]


@pytest.mark.parametrize(("values", "old", "new", "due"), TABLE)
def test_the_class_follows_from_the_values(values, old, new, due):
    before = torch.tensor(values, dtype=old)
    after = torch.empty(before.shape, dtype=new).copy_(before)
    assert classify(before, after) == due


@pytest.mark.parametrize(("values", "old", "new", "due"), [row for row in TABLE if row[2] != torch.uint64])
def test_loading_refuses_exactly_what_loses_values(values, old, new, due):
    model = nn.Module()
    model.register_buffer("x", torch.ones(len(values)).to(new))
    state = {"x": torch.tensor(values, dtype=old)}
    before = picture(model)

    def go(**kwargs):
        return apply_to_model(identity(model), Source(state), model, snapshot(model), **kwargs)

    if due in ("lossless", "rounding"):
        assert go().casts == {due: 1}
        return
    with pytest.raises(VerifyError, match="the cast of `x` loses values"):
        go()
    assert same_picture(before, picture(model))
    assert go(accept=[due]).casts == {due: 1}


FLOATS = [f16, f32, f64, bf16]


@given(
    st.lists(st.floats(width=64), min_size=1, max_size=20),
    st.sampled_from([*FLOATS, i64, i32]),
    st.sampled_from([*FLOATS, i64, i32, b1]),
)
def test_values_never_make_a_lossless_dtype_change_worse(values, old, new):
    if not old.is_floating_point:
        values = [int(max(min(v, 2**31 - 1), -(2**31))) if v == v else 0 for v in values]
    before = torch.tensor(values, dtype=f64 if old.is_floating_point else i64).to(old)
    after = before.to(new)
    found = classify(before, after)
    assert found in CAST_CLASSES
    if cast_class(str(old)[6:], str(new)[6:]) == "lossless":
        assert found == "lossless"
    if found == "lossless":
        assert torch.equal(after.to(old).nan_to_num(0.5), before.nan_to_num(0.5))
