"""The same state dict in every format: the same specs, the same values, nothing executed or imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptdoctor.formats import open_checkpoint, quiet_gc
from ckptdoctor.formats.tensors import TensorReader
from tests.formats.describing import describe
from tests.formats.samples import FORMATS, assert_same, only, repack, save_legacy, save_zip, tensors


@pytest.fixture(params=FORMATS)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    save, name, kind = FORMATS[request.param]
    save(tmp_path / name, tensors())
    return kind, tmp_path / name


def test_every_format_gives_the_same_state_dict(sample: tuple[str, Path]) -> None:
    kind, path = sample
    archive = open_checkpoint(path)
    assert (archive.format, archive.tensors) == (kind, 7)
    assert_same(archive, only(archive), tensors())
    assert only(archive).path == ""


def test_every_format_has_the_same_digest(sample: tuple[str, Path], tmp_path: Path) -> None:
    save_zip(tmp_path / "reference.pth", tensors())
    reference = only(open_checkpoint(tmp_path / "reference.pth"))
    assert only(open_checkpoint(sample[1])).tree.digest == reference.tree.digest


def test_storages_lie_inside_the_files_and_hold_the_bytes(sample: tuple[str, Path]) -> None:
    archive = open_checkpoint(sample[1])
    weight = only(archive).tree["conv.weight"]
    ref = archive.storages[weight.storage]
    assert ref.nbytes == weight.storage_bytes == 4 * 3 * 3 * 3 * 4
    if not ref.compression and ref.inline is None:
        data = Path(ref.file).read_bytes()[ref.offset : ref.offset + ref.nbytes]
        assert data == tensors()["conv.weight"].numpy().tobytes()


def test_descriptions_count_what_is_there(sample: tuple[str, Path]) -> None:
    told = describe(open_checkpoint(sample[1]))
    assert (told["format"], told["tensors"], told["path"]) == (1, 7, str(sample[1]))
    (state_dict,) = told["state_dicts"]
    assert (state_dict["keys"], state_dict["numel"]) == (7, 108 + 4 + 4 + 1 + 2 + 4)
    assert {e["key"]: e["shape"] for e in state_dict["entries"]}["conv.weight"] == [4, 3, 3, 3]


@pytest.mark.parametrize("name", ["zip-2", "legacy-2", "module", "safetensors", "bin-shards", "pickle"])
def test_no_torch_and_no_numpy_is_imported_to_read_specs(name: str, tmp_path: Path) -> None:
    save, file, _ = FORMATS[name]
    save(tmp_path / file, tensors())
    code = (
        "import sys\nfrom ckptdoctor.formats import open_checkpoint\n"
        "print(open_checkpoint(sys.argv[1]).tensors, *(m for m in ('torch', 'numpy', 'tests') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["7"]


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_metadata_versions_are_kept(save: type, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    save(tmp_path / "a.pth", model.state_dict())
    assert only(open_checkpoint(tmp_path / "a.pth")).tree.versions == {"": 1, "0": 1, "1": 2}


def test_hints_tell_the_age_of_the_file(tmp_path: Path) -> None:
    save_zip(tmp_path / "new.pth", tensors())
    save_legacy(tmp_path / "old.pth", tensors())
    torch.save({"pytorch-lightning_version": "2.1.0", "state_dict": tensors()}, tmp_path / "l.ckpt")
    assert "newer" in open_checkpoint(tmp_path / "new.pth").hints["torch"]
    assert "before 1.6" in open_checkpoint(tmp_path / "old.pth").hints["torch"]
    assert open_checkpoint(tmp_path / "l.ckpt").hints["lightning"] == "2.1.0"


def test_a_sparse_file_of_gigabytes_is_read_like_a_small_one(tmp_path: Path) -> None:
    from torch.serialization import skip_data

    with skip_data():
        torch.save(
            {f"layer{i}.weight": torch.empty(1 << 28, dtype=torch.uint8) for i in range(12)},
            tmp_path / "a.pth",
        )
    assert (tmp_path / "a.pth").stat().st_size > 3 << 30
    reads = count_reads(tmp_path / "a.pth")
    assert reads < 1 << 20


def count_reads(path: Path) -> int:
    """Bytes that opening a file reads."""
    import os

    total = 0
    pread = os.pread

    def counting(descriptor: int, count: int, offset: int) -> bytes:
        nonlocal total
        data = pread(descriptor, count, offset)
        total += len(data)
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counting)
        open_checkpoint(path)
    return total


def test_garbage_collection_is_as_before(tmp_path: Path) -> None:
    import gc

    save_zip(tmp_path / "a.pth", tensors())
    assert gc.isenabled()
    open_checkpoint(tmp_path / "a.pth")
    assert gc.isenabled()
    (tmp_path / "bad.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(Exception, match=r"bad\.pth"):
        open_checkpoint(tmp_path / "bad.pth")
    assert gc.isenabled()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("was", [True, False])
def test_an_interruption_leaves_garbage_collection_as_it_was(was: bool) -> None:
    import gc
    import sys

    def work() -> None:
        with quiet_gc(), quiet_gc():
            assert not gc.isenabled()

    def interrupted_at(event: int) -> int:
        seen = 0

        def trace(frame, kind, arg):
            nonlocal seen
            seen += 1
            if seen == event:
                raise KeyboardInterrupt
            return trace

        old = sys.gettrace()
        sys.settrace(trace)
        try:
            work()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(old)
        return seen

    (gc.enable if was else gc.disable)()
    try:
        events = interrupted_at(0)
        assert events > 20
        for event in range(1, events + 1):
            interrupted_at(event)
            assert gc.isenabled() is was, f"event {event} of {events}"
    finally:
        gc.enable()


def test_the_reader_gives_private_copies(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", tensors())
    archive = open_checkpoint(tmp_path / "a.pth")
    read = TensorReader(archive, only(archive))
    read("conv.bias").zero_()
    assert torch.equal(read("conv.bias"), tensors()["conv.bias"])
    assert torch.equal(torch.load(tmp_path / "a.pth")["conv.bias"], tensors()["conv.bias"])


def test_members_of_a_big_endian_machine_are_swapped(tmp_path: Path) -> None:
    import zipfile

    repack(tmp_path / "little.pth", {"a": torch.arange(5.0), "b": torch.arange(3)})
    with zipfile.ZipFile(tmp_path / "little.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            if "/data/" in name:
                size = 4 if name.endswith("0") else 8
                data = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
            new.writestr(name, data)
    archive = open_checkpoint(tmp_path / "big.pth")
    assert archive.hints["byteorder"] == "big"
    assert_same(archive, only(archive), {"a": torch.arange(5.0), "b": torch.arange(3)})
