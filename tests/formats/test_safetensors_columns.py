"""A safetensors header is the same whether it is read by columns or parsed, and so is what is wrong with it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckptdoctor.errors import ReadError
from ckptdoctor.formats import open_checkpoint, safetensors, safetensors_columns
from ckptdoctor.formats.base import Archive
from ckptdoctor.formats.lazy import LazyStorages
from ckptdoctor.formats.tensors import TensorReader

DTYPES = [torch.float32, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn]
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda k: k != "__metadata__")


def tensors(count: int, dice: random.Random) -> dict[str, torch.Tensor]:
    return {
        f"block.{i // 4}.w{i % 4}": torch.zeros(dice.choice([(), (3,), (2, 5), (0, 4)])).to(
            dice.choice(DTYPES)
        )
        for i in range(count)
    }


def header(path: Path) -> tuple[bytes, bytes]:
    """The JSON and the tensors."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + length], raw[8 + length :]


def put(path: Path, text: bytes, rest: bytes) -> Path:
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    return path


def found(path: Path, monkeypatch: pytest.MonkeyPatch, short: int) -> Archive | str:
    monkeypatch.setattr(safetensors, "SHORT", short)
    try:
        return open_checkpoint(path)
    except ReadError as error:
        return str(error)


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """By columns where that can be, and parsed."""
    return found(path, monkeypatch, 0), found(path, monkeypatch, 1 << 40)


def assert_alike(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, parsed = both(path, monkeypatch)
    assert columns == parsed
    if isinstance(parsed, Archive):
        assert list(columns.state_dicts[0].tree.specs) == list(parsed.state_dicts[0].tree.specs)
        assert dict(columns.storages) == dict(parsed.storages)
        assert columns.state_dicts[0].tree.digest == parsed.state_dicts[0].tree.digest


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"a": "ü", "b": "with : and ,"}, {"c": "{}"}])
def test_what_the_library_writes_is_read_by_columns(tmp_path, monkeypatch, metadata) -> None:
    made = tensors(300, random.Random(1))
    save_file(made, tmp_path / "m.safetensors", metadata=metadata)
    assert_alike(tmp_path / "m.safetensors", monkeypatch)
    columns, _ = both(tmp_path / "m.safetensors", monkeypatch)
    assert isinstance(columns.storages, LazyStorages) == (metadata != {"c": "{}"})
    reader = TensorReader(columns, columns.state_dicts[0])
    assert all(torch.equal(reader(key).view(-1), value.view(-1)) for key, value in made.items())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keys=st.lists(KEYS, unique=True, min_size=2, max_size=20), ascii_only=st.booleans())
def test_any_keys_are_read_alike(keys, ascii_only, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(safetensors_columns, "FEW", 2)
    rows = {
        key: {"dtype": "U8", "shape": [2], "data_offsets": [2 * i, 2 * i + 2]} for i, key in enumerate(keys)
    }
    text = json.dumps(rows, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    assert_alike(put(tmp_path / "m.safetensors", text, bytes(2 * len(keys))), monkeypatch)


EDITS = [
    (b'"data_offsets":[0,', b'"data_offsets":[00,'),
    (b'"data_offsets":[0,', b'"data_offsets":[-0,'),
    (b'"shape":[3]', b'"shape":[03]'),
    (b'"shape":[3]', b'"shape":[3,]'),
    (b'"shape":[3]', b'"shape":[4]'),
    (b'"shape":[3]', b'"shape":[1,3]'),
    (b'"shape":[3]', b'"shape":[\xd9\xa3]'),
    (b'"dtype":"F32"', b'"dtype":"F33"'),
    (b'"dtype":"F32"', b'"dtype":"I32"'),
    (b"},", b"}"),
    (b"},", b"},,"),
    (b"},", b"}, "),
    (b'"block.1.w1"', b'"block.1.w0"'),
    (b'"block.1.w1"', b'"__metadata__"'),
    (b'"block.1.w1"', b'"block\n1.w1"'),
    (b'"block.1.w1"', b'"block\\u002e1.w1"'),
    (b'"block.1.w1"', b'"block\xff1.w1"'),
    (b'{"__metadata__":{"format":"pt"},', b'{"__metadata__":{"format":"pt","format":"x"},'),
    (b'{"__metadata__":{"format":"pt"},', b'{"__metadata__":{"format":7},'),
    (b'{"__metadata__":{"format":"pt"},', b'{"__metadata__":{"format" "pt"},'),
    (b'{"__metadata__":{"format":"pt"},', b'["__metadata__":{"format":"pt"},'),
    (b'{"__metadata__":{"format":"pt"},', b"{"),
    (b'{"__metadata__":{"format":"pt"},', b"["),
    (b'{"__metadata__":{"format":"pt"},', b""),
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=range(len(EDITS)))
@pytest.mark.parametrize("end", [b"", b"more", None])
def test_what_is_wrong_is_told_alike(edit, end, tmp_path, monkeypatch) -> None:
    save_file(tensors(100, random.Random(2)), tmp_path / "good.safetensors", metadata={"format": "pt"})
    text, rest = header(tmp_path / "good.safetensors")
    assert edit[0] in text
    rest = rest[:-1] if end is None else rest + end
    assert_alike(put(tmp_path / "m.safetensors", text.replace(*edit, 1), rest), monkeypatch)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_header_gives_the_same_either_way(seed, tmp_path, monkeypatch) -> None:
    dice = random.Random(seed)
    save_file(tensors(80, dice), tmp_path / "good.safetensors", metadata={"format": "pt"})
    text, rest = header(tmp_path / "good.safetensors")
    for _ in range(20):
        damaged = bytearray(text)
        for _ in range(dice.choice([1, 1, 2])):
            at = dice.randrange(len(damaged))
            what = dice.choice([b"", b'"', b",", b"0", b"}", b":", bytes([dice.randrange(256)])])
            damaged[at : at + dice.choice([0, 1, 1])] = what
        assert_alike(put(tmp_path / "m.safetensors", bytes(damaged), rest), monkeypatch)
