"""Damaged files: always a ReadError that names the file, never another exception, never a wrong value."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats import deep_check, open_checkpoint
from ckptdoctor.formats.tensors import TensorReader
from tests.formats.samples import (
    FORMATS,
    bits,
    only,
    save_legacy,
    save_pickle,
    save_safetensors,
    save_tar,
    save_zip,
    tensors,
)

WRITERS: dict[str, Callable[..., None]] = {
    "zip": save_zip,
    "legacy": save_legacy,
    "safetensors": save_safetensors,
    "tar": save_tar,
    "pickle": save_pickle,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for name, save in WRITERS.items():
        save(folder / name, tensors())
        found[name] = (folder / name).read_bytes()
    return found


def opens(path: Path, data: bytes) -> bool:
    """False if it is refused in the right way; values that are read are right, or refused too."""
    path.write_bytes(data)
    try:
        archive = open_checkpoint(path)
        for state_dict in archive.state_dicts:
            read = TensorReader(archive, state_dict)
            for key in state_dict.tree.specs:
                read(key)
    except ReadError as error:
        assert path.name in str(error)
        assert str(error).isprintable()
        return False
    return True


@pytest.mark.parametrize("name", WRITERS)
def test_cut_at_many_places(name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    data = files[name]
    cuts = {*range(0, min(len(data), 400)), *range(0, len(data), 41), *range(len(data) - 100, len(data))}
    survivors = [cut for cut in sorted(cuts) if opens(tmp_path / "cut.pth", data[:cut])]
    if name == "tar":  # it ends in padding that nobody needs
        assert all(not data[cut:].strip(b"\0") for cut in survivors)
    else:
        assert not survivors


@pytest.mark.parametrize("name", ["zip", "safetensors"])
def test_bytes_too_many_are_refused_where_the_format_says_where_it_ends(
    name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    assert opens(tmp_path / "whole.pth", files[name])
    assert not opens(tmp_path / "more.pth", files[name] + b"\1\2\3")


@given(name=st.sampled_from(sorted(WRITERS)), at=st.floats(0, 1), byte=st.integers(1, 255))
def test_any_changed_byte_is_refused_or_harmless(
    name: str, at: float, byte: int, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(files[name])
    data[int(at * (len(data) - 1))] ^= byte
    opens(tmp_path_factory.getbasetemp() / "changed.pth", bytes(data))


@given(at=st.floats(0, 1), byte=st.integers(1, 255))
def test_no_changed_byte_in_a_zip_changes_a_value_or_a_name(
    at: float, byte: int, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.pth"
    data = bytearray(files["zip"])
    data[int(at * (len(data) - 1))] ^= byte
    if not opens(path, bytes(data)):
        return
    archive = open_checkpoint(path)
    read = TensorReader(archive, only(archive))
    assert {k: bits(read(k)) for k in only(archive).tree.specs} == {k: bits(v) for k, v in tensors().items()}


@given(
    data=st.binary(max_size=300),
    start=st.sampled_from([b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"", b'{"', b"(dp0\n"]),
)
def test_noise_is_refused(data: bytes, start: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert not opens(tmp_path_factory.getbasetemp() / "noise.pth", start + data)


def header(info: object, payload: bytes = b"\0" * 16) -> bytes:
    text = info if isinstance(info, bytes) else json.dumps(info).encode()
    return struct.pack("<Q", len(text)) + text + payload


def entry(shape: object = (4,), offsets: object = (0, 16), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD_SAFETENSORS = {
    "duplicate": b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}}',
    "not JSON": b'{"a":{"dtype":"U8"',
    "not UTF-8": b'{"\xff":1}',
    "a list": b"[]",
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "gap": {"a": entry((2,), (0, 8)), "b": entry((1,), (12, 16))},
    "overlap": {"a": entry((4,), (0, 16)), "b": entry((1,), (12, 16))},
    "begins late": {"a": entry((3,), (4, 16))},
    "ends early": {"a": entry((3,), (0, 12))},
    "ends late": {"a": entry((5,), (0, 20))},
    "backwards": {"a": entry((4,), (16, 0))},
    "negative": {"a": entry((-4,), (0, 16))},
    "negative pair": {"a": entry((-2, -2), (0, 16))},
    "float shape": {"a": entry((4.0,), (0, 16))},
    "true shape": {"a": entry((True, 4), (0, 16))},
    "overflow": {"a": entry((2**62, 2**62), (0, 16))},
    "unknown dtype": {"a": entry(dtype="F7")},
    "dtype no word": {"a": entry(dtype=[1])},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
    "one field more": {"a": {**entry(), "x": 1}},
    "entry no object": {"a": 7},
    "offsets three": {"a": entry(offsets=(0, 8, 16))},
    "metadata a list": {"__metadata__": [], "a": entry()},
    "metadata a number": {"__metadata__": {"x": 1}, "a": entry()},
    "huge number": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}',
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_safetensors_rules(case: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(header(BAD_SAFETENSORS[case]))
    with pytest.raises(ReadError, match=r"bad\.safetensors"):
        open_checkpoint(path)
    with pytest.raises(Exception):  # noqa: B017  (the format's own reader agrees, but for duplicates)
        from safetensors import safe_open

        safe_open(str(path), "pt")
        assert case == "duplicate"
        raise ValueError


def test_safetensors_headers_that_lie_about_their_length(tmp_path: Path) -> None:
    for length in (0, 1, 100, 2**31, 2**63, 2**64 - 1):
        assert not opens(tmp_path / "lie.safetensors", struct.pack("<Q", length) + b'{"a":1}')


def edited(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data and len(old) == len(new)
    return data.replace(old, new)


@pytest.mark.parametrize(
    ("size", "offset", "stride", "says"),
    [
        ((5,), 0, (1,), "needs 20 bytes"),
        ((4,), 1, (1,), "needs 20 bytes"),
        ((2, 2), 0, (3, 1), "needs 20 bytes"),
        ((4,), -1, (1,), "outside its storage"),
        ((-4,), 0, (1,), "negative"),
        ((4,), 0, (-1,), "negative"),
        ((2**40, 2**40), 0, (0, 0), "overflow"),
        ((2**63,), 0, (0,), "overflow"),
        ((4,), 2**70, (1,), "outside its storage"),
        ((4,), 0, (), "1 sizes and 0 strides"),
        ((4.0,), 0, (1,), "whole numbers"),
        (("4",), 0, (1,), "whole numbers"),
        (4, 0, (1,), "no readable sizes"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_views_outside_their_storage_name_the_key(
    size: object, offset: object, stride: object, says: str, legacy: bool, tmp_path: Path
) -> None:
    path = tmp_path / "view.pth"
    value = {"state_dict": {"fc.weight": Forged(torch.zeros(4), offset, size, stride)}}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CorruptCheckpointError, match=says) as caught:
        open_checkpoint(path)
    assert "fc.weight" in str(caught.value) and "view.pth" in str(caught.value)


class Forged:
    """Pickles as a tensor with a size, an offset and strides of one's choice."""

    def __init__(self, base: torch.Tensor, offset: object, size: object, stride: object) -> None:
        self.args = (base._typed_storage(), offset, size, stride, False, {})

    def __reduce__(self) -> tuple[object, ...]:
        return torch._utils._rebuild_tensor_v2, self.args


def rewritten(
    path: Path, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes] | None = None
) -> None:
    with zipfile.ZipFile(path) as old:
        members = [(n, old.read(n)) for n in old.namelist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members:
            changed = change(name, data)
            if changed is not None:
                new.writestr(name, changed)
        for name, data in (extra or {}).items():
            new.writestr(name, data)


def test_a_storage_shorter_than_the_pickle_says(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", {"w": torch.ones(10)})
    rewritten(tmp_path / "a.pth", lambda n, d: d[:8] if n.endswith("data/0") else d)
    with pytest.raises(CorruptCheckpointError, match=r"a\.pth.*data/0.*40 bytes.*has 8"):
        open_checkpoint(tmp_path / "a.pth")


def test_a_storage_that_is_not_there(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", {"w": torch.ones(10)})
    rewritten(tmp_path / "a.pth", lambda n, d: None if n.endswith("data/0") else d)
    with pytest.raises(CorruptCheckpointError, match="data/0"):
        open_checkpoint(tmp_path / "a.pth")


def test_two_members_of_one_name(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", {"w": torch.ones(10)})
    with pytest.warns(UserWarning, match="Duplicate"):
        rewritten(tmp_path / "a.pth", lambda n, d: d, {"a/data/0": b"\0" * 40})
    with pytest.raises(CorruptCheckpointError, match="two members named 'a/data/0'"):
        open_checkpoint(tmp_path / "a.pth")


def test_an_unknown_byte_order(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", {"w": torch.ones(10)})
    rewritten(tmp_path / "a.pth", lambda n, d: b"middle" if n.endswith("byteorder") else d)
    with pytest.raises(CorruptCheckpointError, match="middle"):
        open_checkpoint(tmp_path / "a.pth")


def test_overlapping_members(files: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(files["zip"])
    second = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02") + 4)
    struct.pack_into("<L", data, second + 42, 0)  # its local header is where the first one's is
    assert not opens(tmp_path / "overlap.pth", bytes(data))


def test_encrypted_members_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(files["zip"])
    at = data.find(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "secret.pth").write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="encrypted"):
        open_checkpoint(tmp_path / "secret.pth")


def test_a_compressed_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("a/data.pkl", b"\x80\x02" + b"\0" * (1 << 27))
        new.writestr("a/version", "3\n")
    with pytest.raises(CorruptCheckpointError, match="bomb"):
        open_checkpoint(tmp_path / "bomb.pth")


def test_deep_check_finds_bad_checksums_and_values(tmp_path: Path) -> None:
    values = {
        "good": torch.ones(8),
        "bad": torch.tensor([1.0, float("nan"), float("inf"), 2.0]),
        "n": torch.arange(3),
    }
    save_zip(tmp_path / "a.pth", {"state_dict": values})
    found = deep_check(open_checkpoint(tmp_path / "a.pth"))
    assert [(d.code, d.keys) for d in found] == [("CKD406", ("state_dict.bad",))]
    archive = open_checkpoint(tmp_path / "a.pth")
    ref = archive.storages[archive["state_dict"].tree["good"].storage]
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[ref.offset] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    found = deep_check(open_checkpoint(tmp_path / "a.pth"))
    assert [d.code for d in found] == ["CKD405", "CKD406"]
    assert found[0].keys == ("good",) and "data/" in found[0].title


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn", "complex64", "float64"]
)
def test_deep_check_knows_every_float(dtype: str, tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", {"x": torch.tensor([0.5, float("nan")]).to(getattr(torch, dtype))})
    assert [d.code for d in deep_check(open_checkpoint(tmp_path / "a.pth"))] == ["CKD406"]


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("tar",)])
def test_sound_files_pass_the_deep_check(name: str, tmp_path: Path) -> None:
    save, file, _ = FORMATS[name]
    save(tmp_path / file, tensors())
    assert deep_check(open_checkpoint(tmp_path / file)) == []


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptdoctor.formats import torch_zip

    save_zip(tmp_path / "a.pth", tensors())
    assemble = torch_zip.assemble

    def slow(*args: object, **kwargs: object) -> object:
        with (tmp_path / "a.pth").open("ab") as file:
            file.write(b"more")
        return assemble(*args, **kwargs)

    monkeypatch.setattr(torch_zip, "assemble", slow)
    with pytest.raises(ReadError, match="changed while it was read"):
        open_checkpoint(tmp_path / "a.pth")


def test_a_file_that_shrank_since_it_was_inspected(tmp_path: Path) -> None:
    save_zip(tmp_path / "a.pth", {"w": torch.ones(1000)})
    archive = open_checkpoint(tmp_path / "a.pth")
    with (tmp_path / "a.pth").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(ReadError, match="became shorter"):
        TensorReader(archive, only(archive))("w")


def test_no_file_and_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nothing\.pth.*no such file"):
        open_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(ReadError, match="not a regular file"):
        open_checkpoint("/dev/zero")
