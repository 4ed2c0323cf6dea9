"""What torch wrote years ago: view records, the first rebuild function, Python 2, Variables, sources."""

import io
import pickle
import struct
from pathlib import Path

import pytest
import torch

import ckptdoctor
from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.tensors import TensorReader
from tests.formats.samples import assert_same, only, save_tar, tensors


def stream(body: bytes, storages: dict[str, list[float]]) -> bytes:
    """A legacy stream: this pickle, and float32 storages."""
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    data = b"".join(struct.pack(f"<q{len(v)}f", len(v), *v) for v in storages.values())
    return head + body + pickle.dumps(list(storages), 2) + data


def storage(key: bytes, numel: int, view: bytes = b"N") -> bytes:
    return b"((U\x07storagectorch\nFloatStorage\nU%c%sU\x03cpuK%c%stQ" % (len(key), key, numel, view)


def tensor(inner: bytes, offset: int, size: int, function: bytes = b"_rebuild_tensor") -> bytes:
    return b"ctorch._utils\n%s\n%sK%cK%c\x85K\x01\x85tR" % (function, inner, offset, size)


def test_the_first_rebuild_function_and_view_records(tmp_path: Path) -> None:
    view = b"(U\x03v-1K\x02K\x03t"  # three elements of the storage, from its third on
    body = (
        b"\x80\x02}(U\x01a" + tensor(storage(b"10", 6), 0, 6)
        + b"U\x01b" + tensor(storage(b"10", 6, view), 1, 2) + b"u."
    )  # fmt: skip
    path = tmp_path / "old.pth"
    path.write_bytes(stream(body, {"10": [0, 1, 2, 3, 4, 5]}))
    expected = torch.load(path, weights_only=False)
    archive = open_checkpoint(path)
    assert_same(archive, only(archive), expected)
    specs = only(archive).tree.specs
    assert (specs["b"].offset, specs["b"].storage) == (3, specs["a"].storage)
    read = TensorReader(archive, only(archive))
    assert read("b").untyped_storage().data_ptr() == read("a").untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("view", "offset", "size"),
    [(b"(U\x01vK\x02K\x09t", 0, 1), (b"(U\x01vK\x02K\x03t", 2, 2), (b"K\x05", 0, 1)],
)
def test_view_records_outside_their_storage(view: bytes, offset: int, size: int, tmp_path: Path) -> None:
    body = b"\x80\x02}(U\x01b" + tensor(storage(b"10", 6, view), offset, size) + b"u."
    (tmp_path / "old.pth").write_bytes(stream(body, {"10": [0, 1, 2, 3, 4, 5]}))
    with pytest.raises(CorruptCheckpointError):
        open_checkpoint(tmp_path / "old.pth")


def test_strings_of_python_2_that_are_no_utf8(tmp_path: Path) -> None:
    body = (
        b"\x80\x02}(U\x04nameU\x03\xe9t\xe9U\nstate_dict}U\x01w"
        + tensor(storage(b"1", 2), 0, 2, b"_rebuild_tensor")
        + b"su."
    )
    (tmp_path / "py2.pth").write_bytes(stream(body, {"1": [1, 2]}))
    archive = open_checkpoint(tmp_path / "py2.pth")
    assert archive.rest == {"name": "str 'été'"}
    assert TensorReader(archive, archive["state_dict"])("w").tolist() == [1, 2]


def test_variables_and_parameters_of_torch_0_3(tmp_path: Path) -> None:
    parts = b"".join(
        b"U\x01%s%s(%stRN\x89}\x87b" % (name, kind, tensor(storage(b"1", 2), 0, 2))
        for name, kind in (
            (b"p", b"ctorch.nn.parameter\nParameter\n"),
            (b"v", b"ctorch.autograd.variable\nVariable\n"),
        )
    )
    (tmp_path / "v.pth").write_bytes(stream(b"\x80\x02}(" + parts + b"u.", {"1": [1, 2]}))
    archive = open_checkpoint(tmp_path / "v.pth")
    assert {k: s.kind for k, s in only(archive).tree.specs.items()} == {"p": "param", "v": ""}


def test_module_sources_in_the_pickle_are_skipped(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save(model, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert b"class Linear(Module)" in (tmp_path / "m.pth").read_bytes()
    archive = open_checkpoint(tmp_path / "m.pth")
    assert_same(archive, only(archive), model.state_dict())


def test_the_tar_format_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    values = {k: v for k, v in tensors().items() if "nothing" not in k}
    save_tar(tmp_path / "a.pth", values)
    archive = open_checkpoint(tmp_path / "a.pth")
    assert_same(archive, only(archive), torch.load(tmp_path / "a.pth", weights_only=False))


def test_plain_pickles_of_arrays_and_of_tensors(tmp_path: Path) -> None:
    import numpy as np

    arrays = {
        "c": np.arange(6, dtype="<f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype="<i8").reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "bool": np.array([True, False]),
        "words": np.array(["a", "b"]),
    }
    for protocol in range(6):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"weights": arrays, "epoch": 3}, protocol))
        archive = open_checkpoint(tmp_path / "a.pkl")
        found = archive["weights"]
        read = TensorReader(archive, found)
        assert {k: read(k).tolist() for k in found.tree.specs} == {
            k: v.tolist() for k, v in arrays.items() if k != "words"
        }
        assert archive.rest["epoch"] == "int 3" and "weights.words" in archive.rest
        assert archive.diagnostics == ()


@pytest.mark.parametrize("zipped", [True, False])
def test_arrays_that_torch_saved_are_read_where_there_is_no_tensor_beside_them(
    zipped: bool, tmp_path: Path
) -> None:
    import numpy as np

    arrays = {"a.weight": np.arange(6, dtype="<f4").reshape(2, 3), "a.bias": np.ones(2, ">f8")}
    path = tmp_path / "a.pth"
    torch.save({"weights": arrays, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    archive = open_checkpoint(path)
    read = TensorReader(archive, archive["weights"])
    assert {k: read(k).tolist() for k in archive["weights"].tree.specs} == {
        k: v.tolist() for k, v in arrays.items()
    }
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2, dtype=torch.float64)})
    found = ckptdoctor.diagnose(model, path)
    assert found.verdict == "repairable", "as it is, load_state_dict refuses an array"
    ckptdoctor.auto_load(model, path)
    assert model["a"].weight.tolist() == arrays["a.weight"].tolist()
    # The state of numpy's random numbers beside weights stays what it is.
    torch.save({"m": model.state_dict(), "rng": arrays}, path, _use_new_zipfile_serialization=zipped)
    assert [s.path for s in open_checkpoint(path).state_dicts] == ["m"]


def test_tied_tensors_of_a_plain_pickle_and_trailing_streams(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": model}))
    archive = open_checkpoint(tmp_path / "a.pkl")
    assert_same(archive, archive.state_dicts[0], model.state_dict())
    out = io.BytesIO()
    for number in (1, 2):
        torch.save({"w": torch.full((2,), number)}, out, _use_new_zipfile_serialization=False)
    (tmp_path / "two.pth").write_bytes(out.getvalue())
    archive = open_checkpoint(tmp_path / "two.pth")
    assert TensorReader(archive, only(archive))("w").tolist() == [1, 1]
