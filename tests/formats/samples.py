"""One state dict written in every format, and small tools to damage and to compare files."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.formats.tensors import TensorReader


def tensors() -> dict[str, Tensor]:
    """What every format can hold: several shapes and dtypes, a scalar, an empty one."""
    torch.manual_seed(0)
    return OrderedDict(
        {
            "conv.weight": torch.randn(4, 3, 3, 3),
            "conv.bias": torch.randn(4),
            "norm.running_mean": torch.randn(4, dtype=torch.float64),
            "norm.num_batches_tracked": torch.tensor(7),
            "other.mask": torch.tensor([True, False]),
            "other.halves": torch.randn(2, 2).half(),
            "other.nothing": torch.zeros(0, 3),
        }
    )


def save_zip(path: Path, value: object, protocol: int = 2) -> None:
    torch.save(value, path, pickle_protocol=protocol)


def save_legacy(path: Path, value: object, protocol: int = 2) -> None:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def save_deflated(path: Path, value: object) -> None:
    repack(path, value, zipfile.ZIP_DEFLATED)


def repack(path: Path, value: object, method: int = zipfile.ZIP_STORED, root: str = "archive") -> None:
    """A torch zip written again by `zipfile`, with another compression or root."""
    whole = io.BytesIO()
    torch.save(value, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", method) as new:
        for name in old.namelist():
            new.writestr(root + name.removeprefix("archive") if root else name[8:], old.read(name))


class Holder(torch.nn.Module):
    """A scripted module whose state dict is given."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        for key, value in values.items():
            owner: torch.nn.Module = self
            *parents, name = key.split(".")
            for parent in parents:
                if not hasattr(owner, parent):
                    owner.add_module(parent, Holder({}))
                owner = getattr(owner, parent)
            owner.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_script(path: Path, value: Mapping[str, Tensor]) -> None:
    torch.jit.script(Holder(value)).save(str(path))


def save_module(path: Path, value: Mapping[str, Tensor]) -> None:
    torch.save(Holder(value), path)


def save_legacy_module(path: Path, value: Mapping[str, Tensor]) -> None:
    save_legacy(path, Holder(value))


def save_safetensors(path: Path, value: Mapping[str, Tensor]) -> None:
    save_file(dict(value), str(path), metadata={"format": "pt"})


def save_shards(path: Path, value: Mapping[str, Tensor], kind: str = "safetensors") -> None:
    """Two shards beside an index."""
    keys = list(value)
    weight_map = {}
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        name = f"{path.stem}-0000{number}-of-00002.{kind}"
        weight_map.update(dict.fromkeys(part, name))
        shard = {k: value[k] for k in part}
        save_safetensors(path.parent / name, shard) if kind == "safetensors" else torch.save(
            shard, path.parent / name
        )
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def save_bin_shards(path: Path, value: Mapping[str, Tensor]) -> None:
    save_shards(path, value, "bin")


def save_pickle(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value))


def save_tar(path: Path, value: Mapping[str, Tensor]) -> None:
    """As torch 0.1 wrote it: storages, tensors and the pickle as members of a tar."""
    storages, listed = io.BytesIO(), io.BytesIO()
    pickle.dump(len(value), storages, 2)
    pickle.dump(len(value), listed, 2)
    ids: dict[int, int] = {}
    for number, tensor in enumerate(value.values(), 1):
        kind = getattr(torch, torch.TypedStorage(dtype=tensor.dtype, device="cpu")._pickle_storage_type())
        pickle.dump((number, "cpu", kind), storages, 2)
        flat = tensor.contiguous().flatten()
        storages.write(struct.pack("<q", flat.numel()) + flat.view(torch.uint8).numpy().tobytes())
        pickle.dump((1000 + number, number, torch.Tensor), listed, 2)
        listed.write(struct.pack("<i4x", tensor.dim()))
        listed.write(struct.pack(f"<{2 * tensor.dim() + 1}q", *tensor.shape, *tensor.stride(), 0))
        ids[id(tensor)] = 1000 + number
    pickle.dump([], storages, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> int | None:
            return ids.get(id(obj))

    root = io.BytesIO()
    Pickler(root, 2).dump(value)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in (("storages", storages), ("tensors", listed), ("pickle", root)):
            info = tarfile.TarInfo(name)
            info.size = len(content.getvalue())
            tar.addfile(info, io.BytesIO(content.getvalue()))


Save = Callable[[Path, Mapping[str, Tensor]], None]

# name -> how it is saved, file name, Archive.format
FORMATS: dict[str, tuple[Save, str, str]] = {
    **{f"zip-{p}": (lambda f, v, p=p: save_zip(f, v, p), "a.pth", "torch-zip") for p in range(6)},
    **{f"legacy-{p}": (lambda f, v, p=p: save_legacy(f, v, p), "a.pth", "torch-legacy") for p in range(6)},
    "deflated": (save_deflated, "a.pt", "torch-zip"),
    "other-root": (lambda f, v: repack(f, v, root="some model"), "a.ckpt", "torch-zip"),
    "no-root": (lambda f, v: repack(f, v, root=""), "a.bin", "torch-zip"),
    "script": (save_script, "a.pt", "torchscript"),
    "module": (save_module, "a.pt", "torch-zip"),
    "legacy-module": (save_legacy_module, "a.pt", "torch-legacy"),
    "safetensors": (save_safetensors, "a.safetensors", "safetensors"),
    "shards": (save_shards, "a.safetensors.index.json", "safetensors-index"),
    "bin-shards": (save_bin_shards, "a.bin.index.json", "torch-index"),
    "pickle": (save_pickle, "a.pkl", "pickle"),
    "tar": (save_tar, "a.pth", "torch-tar"),
}


def only(archive: Archive) -> StateDict:
    """The state dict of an archive that has one."""
    (state_dict,) = archive.state_dicts
    return state_dict


def assert_same(archive: Archive, state_dict: StateDict, expected: Mapping[str, Tensor]) -> None:
    """Keys, shapes, dtypes and strides as in `expected`, and every value bit for bit."""
    assert set(state_dict.tree.specs) == set(expected)
    if state_dict.tree.ordered:
        assert list(state_dict.tree.specs) == list(expected)
    read = TensorReader(archive, state_dict)
    for key, value in expected.items():
        spec, tensor = state_dict.tree[key], read(key)
        assert (spec.shape, f"torch.{spec.dtype}") == (tuple(value.shape), str(value.dtype)), key
        assert (
            tensor.dtype == value.dtype and tensor.shape == value.shape and tensor.layout == value.layout
        ), key
        assert bits(tensor) == bits(value), key


def bits(tensor: Tensor) -> bytes:
    """The values of any tensor, as bytes."""
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return bytes(
        tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy()
    )
