"""Files that share blocks with their source, as far as a test can know: the ioctl is played by one that
checks what xfs and btrfs check (ioctl_ficlonerange(2)) and copies the bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils import serialization

import ckptdoctor as ckd
from ckptdoctor.errors import ApplyError, VerifyError
from ckptdoctor.writers import clone

REQUEST = 0x4020940D


class Disk:
    """A file system that can share blocks of 4096 bytes; ``fails`` are errors of the next calls."""

    def __init__(self) -> None:
        self.shared = 0
        self.fails: list[int] = []

    def ioctl(self, target: int, request: int, argument: bytes) -> int:
        assert request == REQUEST
        source, start, nbytes, place = struct.unpack("=qQQQ", argument)
        error = self.fails.pop(0) if self.fails else 0
        size = os.fstat(source).st_size
        whole = nbytes % 4096 == 0 or start + nbytes == size
        if start % 4096 or place % 4096 or not whole or start + nbytes > size or not nbytes:
            error = error or errno.EINVAL
        if error:
            raise OSError(error, os.strerror(error))
        assert os.pwrite(target, os.pread(source, nbytes, start), place) == nbytes
        self.shared += nbytes
        return 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(clone, "WORTHWHILE", 4096)
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    return made


def net() -> nn.Module:
    return nn.Sequential(*(nn.Linear(70, 70) for _ in range(6)), nn.BatchNorm1d(70))


def saved(folder: Path, suffix: str, state: dict[str, torch.Tensor], name: str = "a name") -> Path:
    path = folder / f"{name}{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    return path


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{k}": v for k, v in net().state_dict().items()}


def repaired(path: Path, out: Path, model: nn.Module | None = None, **how: Any) -> dict[str, torch.Tensor]:
    model = model or net()
    ckd.apply(ckd.plan(model, path), path, model=model, out=out, **how)
    return load_file(out) if out.suffix == ".safetensors" else torch.load(out, weights_only=False)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("prefix", ["module.", "a.rather.long.prefix."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_rename_shares_all_but_the_edges(
    tmp_path: Path, disk: Disk, suffix: str, prefix: str, verify: bool
) -> None:
    state, told = under(prefix), []
    source, out = saved(tmp_path, suffix, state), tmp_path / f"out{suffix}"
    found = repaired(source, out, verify=verify, progress=lambda done, total: told.append((done, total)))
    assert len(found) == len(state) and all(
        torch.equal(found[k.removeprefix(prefix)], v) for k, v in state.items()
    )
    assert disk.shared > out.stat().st_size - 5 * 4096 and told
    if suffix == ".pth":
        with zipfile.ZipFile(out) as new, zipfile.ZipFile(source) as old:
            assert new.testzip() is None and new.namelist() == old.namelist()
        with serialization.config.patch("load.calculate_storage_offsets", True):
            computed = torch.load(out, mmap=True)
        assert all(torch.equal(computed[k], v) for k, v in found.items())


@pytest.mark.parametrize("error", ["EOPNOTSUPP", "EXDEV", "EINVAL", "ENOTTY", "EPERM"])
@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_where_it_cannot_be_bytes_are_copied(
    tmp_path: Path, disk: Disk, suffix: str, call: int, error: str
) -> None:
    disk.fails = [0] * call + [getattr(errno, error)]
    state, out = under("module."), tmp_path / f"out{suffix}"
    found = repaired(saved(tmp_path, suffix, state), out)
    assert all(torch.equal(found[k.removeprefix("module.")], v) for k, v in state.items())
    assert disk.shared <= 4096
    monkey = tmp_path / "again"
    monkey.mkdir()
    disk.fails = [errno.EXDEV]
    repaired(saved(tmp_path, suffix, state), monkey / f"out{suffix}")
    assert (monkey / f"out{suffix}").read_bytes() == out.read_bytes(), "as if it had not been tried"


def test_nothing_of_the_attempt_stays_behind_a_small_file(tmp_path: Path, disk: Disk) -> None:
    """The first block is shared to see whether it can be; here the whole new file is shorter."""
    model = nn.Linear(2, 2)
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    source = tmp_path / "in.pth"
    torch.save({"state_dict": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(9000)}}}}, source)
    files = []
    for name, fails in ("tried", [0, errno.EXDEV]), ("not", [errno.EXDEV]):
        disk.fails = fails
        (tmp_path / name).mkdir()
        found = repaired(source, tmp_path / name / "out.pth", nn.Linear(2, 2))
        assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())
        files.append((tmp_path / name / "out.pth").read_bytes())
    assert files[0] == files[1] and disk.shared == 4096 > len(files[0])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_failing_disk_is_an_error_and_leaves_nothing(tmp_path: Path, disk: Disk, suffix: str) -> None:
    disk.fails = [0, errno.EIO]
    source = saved(tmp_path, suffix, under("module."))
    with pytest.raises(ApplyError, match="could not be written: Input/output error"):
        repaired(source, tmp_path / f"out{suffix}")
    assert list(tmp_path.iterdir()) == [source]


class Other(nn.Module):
    """The same parameters in another order, some of them alone."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("3", "0", "6"):
            self.add_module(name, net()[int(name)])


def test_another_order_is_copied(tmp_path: Path, disk: Disk) -> None:
    state = {k: v for k, v in net().state_dict().items() if k[0] in "036"}
    found = repaired(saved(tmp_path, ".pth", state), tmp_path / "out.pth", Other())
    assert all(torch.equal(found[k], v) for k, v in state.items()) and disk.shared <= 4096
    assert list(found) == list(Other().state_dict())


@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_of_another_make_is_copied(tmp_path: Path, disk: Disk, legacy: bool) -> None:
    state, path = under("module."), tmp_path / "in.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    if not legacy:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "packed.pth", "w") as new:
            for item in old.infolist():
                new.writestr(item.filename, old.read(item))
        path = tmp_path / "packed.pth"
    found = repaired(path, tmp_path / "out.pth")
    assert all(torch.equal(found[k.removeprefix("module.")], v) for k, v in state.items())
    with zipfile.ZipFile(tmp_path / "out.pth") as new:
        assert new.testzip() is None


def test_a_damaged_source_is_seen_by_the_verification(tmp_path: Path, disk: Disk) -> None:
    state = under("module.")
    source = saved(tmp_path, ".pth", state)
    raw = bytearray(source.read_bytes())
    raw[raw.find(state["module.3.weight"].numpy().tobytes()) + 7] ^= 1
    source.write_bytes(raw)
    with pytest.raises(VerifyError, match=r"`3\.weight` does not fit its checksum"):
        repaired(source, tmp_path / "out.pth")
    assert list(tmp_path.iterdir()) == [source] and disk.shared > 4096


def test_an_envelope_is_shared_too(tmp_path: Path, disk: Disk) -> None:
    state = under("module.")
    rest = {"epoch": 3, "ema": {"w": state["module.2.weight"], "v": torch.randn(90, 90)}}
    torch.save({"model": state, **rest}, tmp_path / "in.pth")
    found = repaired(tmp_path / "in.pth", tmp_path / "out.pth", keep_envelope=True)
    assert all(torch.equal(found["model"][k.removeprefix("module.")], v) for k, v in state.items())
    assert torch.equal(found["ema"]["v"], rest["ema"]["v"])
    assert found["ema"]["w"].data_ptr() == found["model"]["2.weight"].data_ptr()
    assert disk.shared > (tmp_path / "out.pth").stat().st_size - 5 * 4096
