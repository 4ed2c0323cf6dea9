"""Cast classes against what torch does to values."""

from __future__ import annotations

import pytest
import torch

from ckptdoctor.casts import CAST_CLASSES, cast_class, worst

DTYPES = [
    "float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool",
    "complex64", "complex128",
]  # fmt: skip


def extremes(dtype: torch.dtype) -> torch.Tensor:
    """Values at the ends of a dtype's range and precision."""
    if dtype == torch.bool:
        return torch.tensor([False, True])
    if dtype.is_complex:
        return torch.tensor([1 + 1e-6, 1j * (1 + 1e-12), 3e38], dtype=dtype)
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        return torch.tensor([info.max, info.min, info.eps, 1 + info.eps, info.tiny, 0.5], dtype=dtype)
    info = torch.iinfo(dtype)
    return torch.tensor([info.min, info.max, info.max - 1, info.max // 3, 1], dtype=dtype)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("from_", DTYPES)
def test_lossless_is_exactly_what_keeps_every_value(from_: str, to: str) -> None:
    values = extremes(getattr(torch, from_))
    same = values.to(getattr(torch, to)).tolist() == values.tolist()
    kind = cast_class(from_, to)
    if kind != "payload":
        assert (kind == "lossless") == same


@pytest.mark.parametrize(
    ("from_", "to", "kind"),
    [
        ("float16", "float32", "lossless"),
        ("float16", "bfloat16", "rounding"),
        ("float32", "float16", "rounding"),
        ("float64", "float32", "rounding"),
        ("int64", "int32", "range"),
        ("int8", "uint8", "range"),
        ("int32", "float32", "rounding"),
        ("float32", "int64", "truncation"),
        ("complex64", "float32", "truncation"),
        ("float32", "complex64", "lossless"),
        ("uint8", "float32", "payload"),
        ("float8_e4m3fn", "float32", "payload"),
        ("qint8", "float32", "payload"),
        ("float32", "float8_e5m2", "range"),
        ("bool", "int64", "lossless"),
    ],
)
def test_classes(from_: str, to: str, kind: str) -> None:
    assert cast_class(from_, to) == kind


def test_the_worst_counts() -> None:
    assert worst(["lossless", "range", "rounding"]) == "range"
    assert worst([]) == CAST_CLASSES[0]
