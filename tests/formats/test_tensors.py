"""Dtypes, layouts, views and ties: what a spec says and what the reader gives back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.tensors import TensorReader
from ckptdoctor.trees import DTYPE_SIZES
from tests.formats.samples import assert_same, only, save_legacy, save_safetensors, save_zip

PLAIN = [
    "float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int64", "int32", "int16", "int8",
    "uint8", "bool",
]  # fmt: skip
NEW = [
    "uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
]  # fmt: skip


def of_dtype(name: str) -> Tensor:
    dtype = getattr(torch, name)
    raw = torch.arange(6 * DTYPE_SIZES[name], dtype=torch.uint8) % 2
    return raw.view(dtype).reshape(2, 3)


@pytest.mark.parametrize("dtype", PLAIN + NEW)
def test_every_dtype_in_a_zip(dtype: str, tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", {"x": of_dtype(dtype)})
    archive = open_checkpoint(tmp_path / "a.pth")
    assert_same(archive, only(archive), {"x": of_dtype(dtype)})


@pytest.mark.parametrize("dtype", PLAIN + NEW)
def test_every_dtype_in_a_legacy_file_though_torch_cannot_read_the_new_ones(
    dtype: str, tmp_path: Path
) -> None:
    save_legacy(tmp_path / "a.pth", {"x": of_dtype(dtype)})
    archive = open_checkpoint(tmp_path / "a.pth")
    assert_same(archive, only(archive), {"x": of_dtype(dtype)})


@pytest.mark.parametrize("dtype", [d for d in PLAIN + NEW if d not in ("complex32", "complex128")])
def test_every_dtype_of_safetensors(dtype: str, tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", {"x": of_dtype(dtype)})
    archive = open_checkpoint(tmp_path / "a.safetensors")
    assert_same(archive, only(archive), {"x": of_dtype(dtype)})


def layouts() -> dict[str, Tensor]:
    dense = torch.tensor([[0.0, 1.0, 0.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    phase = torch.tensor([1 + 2j, 3 - 4j])
    return {
        "coo": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)),
        "bsc": dense.to_sparse_bsc((2, 2)),
        "per_tensor": torch.quantize_per_tensor(dense, 0.1, 2, torch.qint8),
        "per_channel": torch.quantize_per_channel(
            dense, torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.quint8
        ),
        "conj": phase.conj(),
        "neg": phase.conj().imag,
    }


@pytest.mark.parametrize("key", layouts())
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_layouts_are_put_together_as_torch_does(save: Callable[..., None], key: str, tmp_path: Path) -> None:
    value = layouts()[key]
    save(tmp_path / "a.pth", {"x": value})
    archive = open_checkpoint(tmp_path / "a.pth")
    assert only(archive).tree["x"].layout != "strided"
    assert_same(archive, only(archive), {"x": value})
    made = TensorReader(archive, only(archive))("x")
    if value.is_quantized:
        assert made.qscheme() == value.qscheme()
        assert torch.equal(made.dequantize(), value.dequantize())


def test_parameters_are_told_from_buffers_where_the_file_says_so(tmp_path: Path) -> None:
    values = {"p": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Buffer(torch.ones(2)), "t": torch.ones(2)}
    torch.save(values, tmp_path / "a.pth")
    specs = only(open_checkpoint(tmp_path / "a.pth")).tree.specs
    assert (specs["p"].kind, specs["t"].kind) == ("param", "")


def test_a_tensor_subclass_and_tensors_with_attributes_keep_their_values(tmp_path: Path) -> None:
    tagged = torch.ones(3)
    tagged.note = "mine"
    torch.save({"x": tagged}, tmp_path / "a.pth")
    archive = open_checkpoint(tmp_path / "a.pth")
    assert_same(archive, only(archive), {"x": torch.ones(3)})


def test_meta_tensors_have_a_spec_and_no_values(tmp_path: Path) -> None:
    torch.save({"x": torch.empty(2, 3, device="meta")}, tmp_path / "a.pth")
    archive = open_checkpoint(tmp_path / "a.pth")
    spec = only(archive).tree["x"]
    assert (spec.shape, spec.device, spec.storage) == ((2, 3), "meta", "")
    assert TensorReader(archive, only(archive))("x").is_meta


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_views_keep_storage_offset_and_strides(save: Callable[..., None], tmp_path: Path) -> None:
    base = torch.arange(20.0).reshape(4, 5)
    views = {
        "base": base,
        "rows": base[1:3],
        "t": base.t(),
        "cell": base[2, 3],
        "wide": base[:1].expand(4, 5),
    }
    save(tmp_path / "a.pth", views)
    archive = open_checkpoint(tmp_path / "a.pth")
    specs = only(archive).tree.specs
    assert len({s.storage for s in specs.values()}) == 1
    assert {k: (s.offset, s.strides) for k, s in specs.items()} == {
        "base": (0, None),
        "rows": (5, None),
        "t": (0, (1, 5)),
        "cell": (13, None),
        "wide": (0, (0, 1)),
    }
    read = TensorReader(archive, only(archive))
    tensors = {k: read(k) for k in views}
    assert all(torch.equal(tensors[k], v) and tensors[k].stride() == v.stride() for k, v in views.items())
    tensors["base"][2, 3] = -1
    assert tensors["cell"].item() == -1
    assert len({t.untyped_storage().data_ptr() for t in tensors.values()}) == 1


def test_ties_are_one_tensor(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    save_zip(tmp_path / "a.pth", {"embed": weight, "head": weight, "copy": weight.clone()})
    archive = open_checkpoint(tmp_path / "a.pth")
    assert only(archive).tree.ties == (("embed", "head"),)
    read = TensorReader(archive, only(archive))
    assert read("embed").data_ptr() == read("head").data_ptr() != read("copy").data_ptr()


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    order=st.randoms(use_true_random=False),
    start=st.integers(0, 3),
    legacy=st.booleans(),
)
def test_any_strided_view_comes_back(
    shape: list[int], order: object, start: int, legacy: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("views") / "a.pth"
    permutation = list(range(len(shape)))
    order.shuffle(permutation)
    whole = torch.arange(start + torch.Size(shape).numel() + 2, dtype=torch.int32)
    view = whole[start : start + torch.Size(shape).numel()].reshape(shape).permute(permutation)
    (save_legacy if legacy else save_zip)(path, {"v": view})
    archive = open_checkpoint(path)
    read = TensorReader(archive, only(archive))("v")
    assert torch.equal(read, view) and read.is_contiguous() == view.is_contiguous()
    assert (only(archive).tree["v"].strides is None) == view.is_contiguous()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", {"good": torch.ones(3), "bad": torch.ones(100)})
    archive = open_checkpoint(tmp_path / "a.pth")
    ref = archive.storages[only(archive).tree["bad"].storage]
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[ref.offset + 7] ^= 64
    (tmp_path / "a.pth").write_bytes(data)
    archive = open_checkpoint(tmp_path / "a.pth")
    read = TensorReader(archive, only(archive))
    assert torch.equal(read("good"), torch.ones(3))
    with pytest.raises(CorruptCheckpointError, match="bad") as caught:
        read("bad")
    assert [d.code for d in caught.value.diagnostics] == ["CKD405"]
    assert not torch.equal(TensorReader(archive, only(archive), check_crc=False)("bad"), torch.ones(100))


def test_files_saved_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save_zip(tmp_path / "a.pth", {"x": torch.arange(9.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    archive = open_checkpoint(tmp_path / "a.pth")
    assert_same(archive, only(archive), {"x": torch.arange(9.0)})


def test_a_dtype_that_this_torch_lacks_is_refused_with_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_zip(tmp_path / "a.pth", {"layer.scale": torch.zeros(4, dtype=torch.float8_e5m2)})
    monkeypatch.delattr(torch, "float8_e5m2")
    archive = open_checkpoint(tmp_path / "a.pth")
    assert only(archive).tree["layer.scale"].dtype == "float8_e5m2"
    with pytest.raises(ReadError, match=r"layer\.scale.*float8_e5m2"):
        TensorReader(archive, only(archive))("layer.scale")
