"""Pickles made to attack whoever loads them: nothing runs, nothing is imported, nothing hangs or explodes."""

import copyreg
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.base import Archive
from tests.formats.samples import only, save_legacy, save_pickle, save_zip


def zip_with(path: Path, data: bytes, **members: bytes) -> Path:
    """A torch zip around this pickle."""
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("a/data.pkl", data)
        new.writestr("a/version", "3\n")
        for name, content in members.items():
            new.writestr(f"a/data/{name}", content)
    return path


def legacy_with(path: Path, data: bytes) -> Path:
    """A legacy stream around this pickle."""
    parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(parts) + data + pickle.dumps([], 2))
    return path


WRAPPERS = {"zip": zip_with, "legacy": legacy_with}


class Attack:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def attacks(canary: Path) -> dict[str, object]:
    touch = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Attack(os.system, f"touch {canary}"),
        "eval": Attack(eval, touch),
        "exec": Attack(exec, touch),
        "open": Attack(open, str(canary), "w"),
        "import": Attack(__import__, "antigravity"),
        "getattr": Attack(getattr, os, "system") if False else Attack(getattr, Path(canary), "touch"),
        "load": Attack(torch.load, str(canary)),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
def test_calls_are_recorded_and_never_made(
    name: str, save: Callable[[Path, object], None], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "a.pth"
    save(path, {"state_dict": {"w": torch.ones(2)}, "x": attacks(canary)[name]})
    archive = open_checkpoint(path)
    assert not canary.exists() and "antigravity" not in sys.modules
    assert list(archive["state_dict"].tree.specs) == ["w"]
    assert [(d.code, d.severity) for d in archive.diagnostics] == [("CKD401", "error")]
    assert any(g in archive.diagnostics[0].title for g in archive.unknown_globals)


@pytest.mark.parametrize("protocol", range(6))
def test_an_attack_in_the_place_of_a_tensor_is_no_tensor(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    save_zip(tmp_path / "a.pth", {"w": torch.ones(2), "x": Attack(os.system, f"touch {canary}")}, protocol)
    archive = open_checkpoint(tmp_path / "a.pth")
    assert list(only(archive).tree.specs) == ["w"] and not canary.exists()
    assert "system" in archive.rest["x"]


def test_unknown_classes_are_warned_of_and_known_ones_are_not(tmp_path: Path) -> None:
    import argparse
    import collections
    import datetime
    import pathlib

    harmless = {
        "args": argparse.Namespace(lr=1), "path": pathlib.PurePosixPath("a/b"), "when": datetime.datetime(2020, 1, 1),
        "count": collections.Counter(a=1), "dtype": torch.float16, "size": torch.Size([1]), "set": {1},
        "device": torch.device("cpu"),
    }  # fmt: skip
    save_zip(tmp_path / "a.pth", {"state_dict": {"w": torch.ones(2)}, **harmless})
    assert open_checkpoint(tmp_path / "a.pth").diagnostics == ()
    save_zip(tmp_path / "b.pth", {"state_dict": {"w": torch.ones(2)}, "x": Attack(time.sleep, 0)})
    archive = open_checkpoint(tmp_path / "b.pth")
    assert archive.unknown_globals == ("time.sleep",)
    assert [(d.code, d.severity) for d in archive.diagnostics] == [("CKD401", "warning")]


def memo(index: int) -> bytes:
    return b"\x80\x02}r" + struct.pack("<I", index) + b"."


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def by_records(count: int) -> bytes:
    """A tuple that doubles in each tensor record, whose size and stride are the last one's arguments."""
    made = (
        b"\x80\x02}(" + text("a") + b"(ca\nb\nq\x01" + text("storage") + b"q\x02ctorch\nFloatStorage\nq\x03"
    )
    made += text("cpu") + b"q\x04)q\x05t"
    for i in range(5, 5 + count):
        made += text("k") + b"h\x01((h\x02h\x03" + text("0") + b"h\x04K\x01tQK\x00" + bytes((ord("h"), i)) * 2
        made += b"\x89h\x01)Rt" + bytes((ord("q"), i + 1)) + b"R"
    return made + bytes((ord("h"), 5 + count)) + b"K\x01" + text("more") + text("x" * 20_000) + b"u."


BOMBS = {
    "memo of 30 GB": memo(2**31),
    "memo as text": b"(dp4000000000\n.",
    "bytes of 1 TB": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "bytearray of 1 TB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "string of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "frame of 1 TB": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "key that takes forever to hash": b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",
    "the same by the memo": b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",
    "the same by records": by_records(60),
    "the same in a set": b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.",
    "the same in OrderedDict's argument": b"\x80\x02ccollections\nOrderedDict\n](]("
    + b")" + b"2\x86" * 60 + b"K\x01eea\x85R.",
    "key too deep to hash": b"\x80\x02})" + b"\x85" * 2_000_000 + b"K\x01s.",
    "lists a million deep": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "tuples a million deep": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "objects half a million deep": b"\x80\x02ca\nb\nq\x00)" + b"h\x00\x85h\x00)R0" * 10 + b"h\x00)R\x85R" * 0
    + b"0h\x00)R" + b"q\x01h\x00h\x01\x85R" * 500_000 + b".",
    "extension registry": b"\x80\x02\x82\x01.",
    "buffers from outside": b"\x80\x05\x97.",
    "a size whose hash never ends": b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(((X\x07\0\0\0storagectorch\n"
    b"FloatStorage\nX\x01\0\0\0" b"0X\x03\0\0\0cpuK\x00tQK\x00)" + b"2\x86" * 60 + b"K\x01\x85\x89NtRs.",
    "a quantizer whose text never ends": b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_qtensor\n(((X\x07\0\0\0storagectorch\n"
    b"FloatStorage\nX\x01\0\0\0" b"0X\x03\0\0\0cpuK\x00tQK\x00)))" + b"2\x86" * 60 + b"K\x01K\x01\x87\x89NtRs.",
    "a number of a million digits": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "state of a type": b"\x80\x02ccollections\nOrderedDict\n}X\x01\0\0\0aK\x01sb.",
    "state of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\0\0\0__defaults__)s\x86b.",
    "slots of a parameter type": b"\x80\x02ctorch.nn.parameter\nParameter\nN}X\x07\0\0\0__new__K\x01s\x86b.",
    "names without end": b"\x80\x02(" + b"".join(b"cm\nn%d\n" % i for i in range(30_000)) + b"t.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_bombs_do_no_harm(name: str, wrapper: str, tmp_path: Path) -> None:
    path = WRAPPERS[wrapper](tmp_path / "a.pth", BOMBS[name])
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptCheckpointError, match=r"a\.pth") as caught:
        open_checkpoint(path)
    assert len(str(caught.value)) < 600
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_the_extension_registry_is_neither_read_nor_written(tmp_path: Path) -> None:
    copyreg.add_extension("os", "getcwd", 77)
    try:
        with pytest.raises(CorruptCheckpointError):
            open_checkpoint(zip_with(tmp_path / "a.pth", b"\x80\x02\x82\x4d)R."))
        assert 77 not in copyreg._extension_cache
    finally:
        copyreg.remove_extension("os", "getcwd", 77)


def test_later_files_are_not_affected_by_earlier_ones(tmp_path: Path) -> None:
    for name, data in BOMBS.items():
        if name.startswith(("state", "slots")):
            with pytest.raises(ReadError):
                open_checkpoint(zip_with(tmp_path / "a.pth", data))
    save_zip(tmp_path / "b.pth", {"w": torch.nn.Parameter(torch.ones(2, 3))})
    assert only(open_checkpoint(tmp_path / "b.pth")).tree["w"].shape == (2, 3)


def test_a_mapping_that_contains_itself_is_walked_once(tmp_path: Path) -> None:
    value: dict[str, object] = {"state_dict": {"w": torch.ones(2)}}
    value["me"] = value
    value["list"] = [value, value["state_dict"]]
    save_zip(tmp_path / "a.pth", value)
    archive = open_checkpoint(tmp_path / "a.pth")
    assert [(s.path, list(s.tree.specs)) for s in archive.state_dicts] == [("state_dict", ["w"])]
    assert archive.tensors == 1 and "list[1]" in archive.state_dicts[0].note


def test_a_module_that_contains_itself_is_refused(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    module._modules["me"] = module
    save_zip(tmp_path / "a.pth", module)
    with pytest.raises(CorruptCheckpointError, match="contains itself"):
        open_checkpoint(tmp_path / "a.pth")


def keys_of(archive: Archive) -> list[str]:
    return list(only(archive).tree.specs)


@pytest.mark.parametrize(
    "key", ["\x1b[31mred", "a\nb", "\u202eevil", "", "x" * 10_000, "<script>", "'\"", "\ud800", "a..b", "é"]
)
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_odd_keys_are_kept_exactly(key: str, save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "a.pth", {key: torch.ones(2)})
    assert keys_of(open_checkpoint(tmp_path / "a.pth")) == [key]


def test_odd_keys_are_escaped_in_messages(tmp_path: Path) -> None:
    from tests.formats.test_damaged import Forged

    save_zip(tmp_path / "a.pth", {"\x1b[31m\u202e": Forged(torch.zeros(1), 0, (9,), (1,))})
    with pytest.raises(CorruptCheckpointError) as caught:
        open_checkpoint(tmp_path / "a.pth")
    assert str(caught.value).isprintable() and "\\x1b" in str(caught.value)
