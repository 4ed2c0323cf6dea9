"""Tensors that are the mapped file: the same values, no writes to the file, and when nothing is mapped."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ckptdoctor as ckd
from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats import mapping, open_checkpoint, parallel
from ckptdoctor.formats.tensors import TensorReader, model_reader

STATE = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.arange(7, dtype=torch.int64),
    "c": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "flag": torch.tensor([True, False, True]),
}

SHAPES = [(24,), (2, 12), (1, 4, 6), (2, 1, 3, 4, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def saved(folder: Path, kind: str) -> Path:
    path = folder / f"model.{kind}"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind != "legacy")
    return path


def opened(path: Path, **kwargs: bool) -> TensorReader:
    archive = open_checkpoint(path)
    return TensorReader(archive, archive.state_dicts[0], **kwargs)


@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
def test_mapped_tensors_have_the_same_values_and_never_reach_the_file(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, kind)
    before = path.read_bytes()
    read = opened(path, mapped=True)
    read.check(STATE)
    for key, value in STATE.items():
        found = read(key)
        assert torch.equal(found, value) and found.dtype == value.dtype
        found.zero_()
    assert path.read_bytes() == before
    assert torch.equal(opened(path, mapped=True)("a"), STATE["a"])


def test_a_safetensors_payload_without_alignment_is_read_and_not_mapped(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    for pad in range(8):
        path = tmp_path / f"{pad}.safetensors"
        text = header + b" " * pad
        path.write_bytes(len(text).to_bytes(8, "little") + text + torch.tensor([1.0, 2.0]).numpy().tobytes())
        found = opened(path, mapped=True)("x")
        assert found.tolist() == [1, 2] and found.data_ptr() % 4 == 0


@pytest.mark.parametrize("mapped", [True, False])
def test_a_bad_checksum_is_found_by_threads_too(tmp_path: Path, mapped: bool, monkeypatch) -> None:
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 3)
    path = tmp_path / "a.pth"
    torch.save({f"w{i}": torch.full((100,), float(i)) for i in range(9)}, path)
    raw = bytearray(path.read_bytes())
    at = raw.rfind(torch.full((100,), 5.0).numpy().tobytes())
    raw[at + 7] ^= 1
    path.write_bytes(raw)
    read = opened(path, mapped=mapped)
    with pytest.raises(CorruptCheckpointError, match=r"`?w5`?"):
        read.prepare([f"w{i}" for i in range(9)])


def test_reading_ahead_gives_private_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path, "pth")
    read = opened(path)
    read.read_ahead(STATE)
    path.unlink()
    assert all(torch.equal(read(key), value) for key, value in STATE.items())


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_was_written_since_it_was_inspected_is_refused(tmp_path: Path, mapped: bool) -> None:
    path = saved(tmp_path, "pth")
    read = opened(path, mapped=mapped)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ReadError, match="was written since it was inspected"):
        read("a")


@pytest.mark.parametrize(
    ("kinds", "local"),
    [
        ({"/": "ext4"}, True),
        ({"/": "nfs4"}, False),
        ({"/": "ext4", "/data": "fuse.sshfs"}, False),
        ({"/": "nfs", "/data": "xfs"}, True),
        ({}, None),
    ],
)
def test_what_is_local_is_told_by_the_nearest_mount(monkeypatch, kinds, local) -> None:
    monkeypatch.setattr(mapping, "_mounts", lambda: kinds)
    assert mapping.is_local("/data/x/model.pth") is local


@pytest.mark.parametrize(
    ("kind", "lasting", "private", "mapped"),
    [
        ("ext4", True, False, True),
        ("ext4", True, True, False),
        ("ext4", False, True, True),
        ("nfs4", True, False, False),
        ("nfs4", False, False, False),
        ("", True, False, False),
        ("", False, False, True),
    ],
)
def test_what_is_mapped(tmp_path: Path, monkeypatch, kind, lasting, private, mapped) -> None:
    monkeypatch.setattr(mapping, "_mounts", lambda: {"/": kind} if kind else {})
    archive = open_checkpoint(saved(tmp_path, "pth"))
    made = model_reader(archive, archive.state_dicts[0], lasting=lasting, private=private, check_crc=True)
    assert made.mapped is mapped


def _edited(path: Path) -> None:
    raw = path.read_bytes()
    with path.open("r+b") as file:
        file.write(b"\xff" * len(raw))


def test_a_materialised_model_and_one_that_had_memory_do_not_depend_on_the_file(tmp_path: Path) -> None:
    torch.save({"module.weight": torch.ones(3, 2), "module.bias": torch.ones(3)}, tmp_path / "a.pth")
    with torch.device("meta"):
        made = nn.Linear(2, 3)
    real = nn.Linear(2, 3)
    ckd.auto_load(made, tmp_path / "a.pth", materialise=True)
    ckd.auto_load(real, tmp_path / "a.pth")
    _edited(tmp_path / "a.pth")
    for model in (made, real):
        assert torch.equal(model.weight, torch.ones(3, 2)) and torch.equal(model.bias, torch.ones(3))


def test_without_verification_a_flipped_bit_passes_and_the_receipt_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.find(torch.ones(3, 2).numpy().tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptCheckpointError):
        ckd.auto_load(nn.Linear(2, 3), path)
    receipt = ckd.auto_load(nn.Linear(2, 3), path, verify=False)
    assert not receipt.verified and "not verified, as asked" in str(receipt)
    assert ckd.auto_load(nn.Linear(2, 3), path, verify=False).to_dict()["verified"] is False


def test_without_verification_a_cast_that_loses_values_is_still_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.full((3, 2), 1e9), "bias": torch.ones(3)}, tmp_path / "a.pth")
    model = nn.Linear(2, 3).half()
    before = model.weight.detach().clone()
    with pytest.raises(ckd.CkptDoctorError, match="loses values"):
        ckd.auto_load(model, tmp_path / "a.pth", verify=False)
    assert torch.equal(model.weight, before)


MEMORY = """
    import sys, torch
    import ckptdoctor as ckd
    from importlib import import_module
    from torch import nn
    commit, replay = map(import_module, ("ckptdoctor.apply.commit", "ckptdoctor.verify.replay"))

    def private():
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
    most = 0.0
    def watched(function):
        def run(a, b):
            global most
            most = max(most, private())
            found = function(a, b)
            most = max(most, private())
            return found
        return run
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(24)))
    ckd.auto_load(nn.Linear(2, 2), sys.argv[2])  # imports
    commit.copied, replay.same_bits = watched(commit.copied), watched(replay.same_bits)
    before = private()
    ckd.auto_load(model, sys.argv[1])
    print(most - before)
"""


@pytest.mark.parametrize("half", [False, True], ids=["copied", "cast"])
def test_a_load_needs_no_more_private_memory_than_the_model_and_a_tensor(tmp_path: Path, half: bool) -> None:
    state = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(24))).state_dict()
    rows = {f"module.{k}": v.half() if half else v for k, v in state.items()}
    torch.save(rows, tmp_path / "a.pth")
    torch.save({f"module.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()}, tmp_path / "b.pth")
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), tmp_path / "a.pth", tmp_path / "b.pth"]
    steady = {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # what is freed is given back at once
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **steady})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 32, "MB beside a model of 96 MB with tensors of 4 MB"


def test_a_file_that_was_cut_after_it_was_mapped_is_an_error_when_it_is_summed(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(1 << 20)}, path)
    read = opened(path, mapped=True)
    read.files.mapped(str(path))
    os.truncate(path, 8192)
    with pytest.raises(ReadError, match="became shorter"):
        read.check(["w"])


def test_the_checksum_through_the_map_is_that_of_the_bytes(tmp_path: Path) -> None:
    values = os.urandom(3 * mapping.STEP + 5)
    (tmp_path / "a").write_bytes(values)
    with open(tmp_path / "a", "rb") as file:
        mapped = mapping.FileMap(file.fileno(), len(values))
    for start, end in ((0, len(values)), (1, 2), (4095, 4097), (77, mapping.STEP + 77), (5, len(values) - 1)):
        assert mapped.crc32(start, end - start) in (zlib.crc32(values[start:end]), None)


def test_an_older_system_sums_by_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping.FileMap, "crc32", lambda *_: None)
    path = saved(tmp_path, "pth")
    opened(path, mapped=True).check(STATE)
    raw = bytearray(path.read_bytes())
    raw[raw.index(STATE["a"].numpy().tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptCheckpointError):
        opened(path, mapped=True).check(STATE)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_reader_knows_its_own_memory(tmp_path: Path, kind: str) -> None:
    state = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(12.0).reshape(3, 4)}
    path = tmp_path / f"m.{kind}"
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    read, private = opened(path, mapped=True), opened(path)
    a = read("a")
    assert read.holds("a", a) and read.again().holds("a", a) and read.holds("a", nn.Parameter(a))
    for other in (a.clone(), read("b"), a.view(4, 3), a.view(torch.int32), a[:2], a.mT, private("a")):
        assert not read.holds("a", other)
    assert not private.holds("a", private("a")) and not read.holds("b", a)
    assert not opened(path, mapped=True).holds("a", a), "mapped once more, elsewhere"


def test_memory_whose_checksum_was_not_looked_at_is_not_known(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(9)}, tmp_path / "m.pth")
    careless, careful = (opened(tmp_path / "m.pth", mapped=True, check_crc=c) for c in (False, True))
    careful._files = careless.files
    assert careless.holds("a", careless("a")) and not careful.holds("a", careless("a"))
    careful.check(["a"])
    assert careful.holds("a", careless("a"))


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_tensors_that_are_read_together_are_as_those_that_are_read_alone(tmp_path: Path, kind: str) -> None:
    state = {
        f"{n}.{d}": torch.arange(24).reshape(shape).to(d) for n, shape in enumerate(SHAPES) for d in DTYPES
    }
    state |= {f"scalar.{d}": torch.tensor(1).to(d) for d in DTYPES}
    path = tmp_path / f"m.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    read = opened(path, mapped=True)
    before = path.read_bytes()
    together = read.all_of(state)
    assert together is not None
    for key, found in zip(state, together, strict=True):
        alone = read(key)
        assert found.shape == alone.shape == state[key].shape and found.dtype == state[key].dtype
        assert found.is_contiguous() and not found._is_view() and found.data_ptr() == alone.data_ptr()
        assert found.untyped_storage().nbytes() == state[key].untyped_storage().nbytes()
        assert torch.equal(found, state[key])
        found.zero_()
    assert path.read_bytes() == before


def test_what_is_no_whole_storage_is_not_read_together(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    torch.save(
        {"a": base[:4], "b": base[4:], "whole": torch.ones(3), "empty": torch.ones(0)}, tmp_path / "m.pth"
    )
    read = opened(tmp_path / "m.pth", mapped=True)
    for keys in (["a"], ["whole", "b"], ["empty"]):
        assert read.all_of(keys) is None
    assert read.all_of(["whole"]) is not None and opened(tmp_path / "m.pth").all_of(["whole"]) is None


def test_a_checksum_is_looked_at_before_tensors_are_given_together(tmp_path: Path) -> None:
    path = saved(tmp_path, "pth")
    raw = bytearray(path.read_bytes())
    raw[raw.index(STATE["a"].numpy().tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptCheckpointError, match="the bytes of a "):
        opened(path, mapped=True).all_of(["b", "a"])
    assert opened(path, mapped=True, check_crc=False).all_of(["b", "a"]) is not None
