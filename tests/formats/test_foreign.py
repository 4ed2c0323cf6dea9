"""Files of other kinds are named as what they are, with what to do. Their content is never run."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ckptdoctor.errors import CorruptCheckpointError, UnknownFormatError
from ckptdoctor.formats import open_checkpoint
from tests.formats.samples import save_safetensors, save_zip, tensors

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 102502400\n"


def tar_of(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


def zip_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for name, data in members.items():
            new.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return out.getvalue()


def npy(array: object) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


FOREIGN = {
    "git-lfs pointer to a file of 102.5 MB": (LFS, "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html><body>Quota exceeded</body></html>", "download it again"),
    "HTML or XML": (
        b"\n  <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "download it again",
    ),
    "server's answer, 'Repository not found'": (b'{"error":"Repository not found"}', "download"),
    "configuration": (b'{"architectures": ["Bert"], "model_type": "bert"}', "same folder"),
    "without a weight_map": (b'{"a": 1}', "shard index"),
    "begins like JSON": (b'{"a": ', "checkpoint"),
    "nothing but white space": (b"\n\n", "download"),
    "text file that begins `Entry not found`": (b"Entry not found\n...", "download"),
    "gzip": (gzip.compress(b"x"), "gunzip"),
    "bzip2": (bz2.compress(b"x"), "bunzip2"),
    "xz": (lzma.compress(b"x"), "unxz"),
    "tar archive (model.pth)": (tar_of("model.pth"), "tar xf"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "checkpoint itself"),
    "JPEG": (b"\xff\xd8\xff\xe0" + b"\0" * 20, "checkpoint itself"),
    "GGUF": (b"GGUF\x03\0\0\0" + b"\0" * 20, "original checkpoint"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "convert"),
    "numpy array": (npy([1, 2]), "torch.from_numpy"),
    "zip file around folder/model.pth": (zip_of(folder__model_dot_pth=b"x"), "unzip"),
    "numpy archive": (zip_of(a_dot_npy=npy([1.0])), "from_numpy"),
    "torch.package": (
        zip_of(**{"m__.data__extern_modules": b"", "m__model__model.pkl": b""}),
        "PackageImporter",
    ),
    "without a data.pkl": (zip_of(readme=b"x"), "unpack"),
    "plain pickle without tensors (dict of 1: a)": (pickle.dumps({"a": 1}), "checkpoint itself"),
    "PDF": (b"%PDF-1.7\n", "checkpoint itself"),
    "no known checkpoint format (it begins with 01 02": (b"\1\2\3\4" * 20, "can be read"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_other_files_are_named(what: str, tmp_path: Path) -> None:
    data, advice = FOREIGN[what]
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(path)
    assert what in str(caught.value)
    assert advice in str(caught.value)
    assert "weights.pth" in str(caught.value)


def test_source_code_in_the_place_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import torch\n")
    with pytest.raises(UnknownFormatError, match=r"a Python file, .*MODEL"):
        open_checkpoint(tmp_path / "model.py")


@pytest.mark.parametrize(
    ("data", "says"), [(b"", "empty"), (b"\0" * 5000, "zeros"), (b"PK\x03\x04" + b"\0" * 50, "truncated")]
)
def test_files_that_never_arrived(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=says):
        open_checkpoint(tmp_path / "weights.pth")


def test_control_characters_of_a_file_never_reach_the_message(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b'{"error": "\\u001b[31mred\\u202e"}')
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(tmp_path / "w.pth")
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)


def test_a_dcp_folder_and_its_parts(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import FileSystemWriter, save

    save(tensors(), storage_writer=FileSystemWriter(tmp_path / "dcp"), no_dist=True)
    for path in (tmp_path / "dcp", tmp_path / "dcp" / ".metadata", next((tmp_path / "dcp").glob("*.distcp"))):
        with pytest.raises(UnknownFormatError, match="dcp_to_torch"):
            open_checkpoint(path)


def test_a_folder_with_one_checkpoint(tmp_path: Path) -> None:
    save_zip(tmp_path / "pytorch_model.bin", tensors())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    assert open_checkpoint(tmp_path).path == str(tmp_path / "pytorch_model.bin")


def test_a_folder_with_several_or_none_asks(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="without a checkpoint"):
        open_checkpoint(tmp_path)
    save_zip(tmp_path / "best.pth", tensors())
    save_safetensors(tmp_path / "last.safetensors", tensors())
    with pytest.raises(UnknownFormatError, match=r"best\.pth, last\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"), [("zero_to_fp32.py", "zero_to_fp32"), ("saved_model.pb", "TensorFlow")]
)
def test_folders_of_other_kinds(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UnknownFormatError, match=says):
        open_checkpoint(tmp_path)
