"""Shard indexes keep their promises, or the one that is broken is named."""

import json
import os
from pathlib import Path

import pytest
import torch

from ckptdoctor.errors import CorruptCheckpointError, ReadError, UnknownFormatError
from ckptdoctor.formats import open_checkpoint
from tests.formats.samples import assert_same, only, save_safetensors, save_shards, save_zip, tensors

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model.safetensors.index-0000{i}-of-00002.safetensors" for i in (1, 2))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    save_shards(tmp_path / INDEX, tensors())
    return tmp_path / INDEX


def change(index: Path, **weights: str | None) -> None:
    """Point keys to other shards; None removes them."""
    content = json.loads(index.read_text())
    for key, shard in weights.items():
        key = key.replace("__", ".")
        content["weight_map"].pop(key, None)
        if shard is not None:
            content["weight_map"][key] = shard
    index.write_text(json.dumps(content))


def refusal(index: Path) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        open_checkpoint(index)
    assert INDEX in str(caught.value)
    return str(caught.value)


def test_all_shards_are_one_state_dict_and_belong_to_the_archive(index: Path) -> None:
    archive = open_checkpoint(index)
    assert [Path(f).name for f in archive.files] == [INDEX, FIRST, SECOND]
    assert archive.size == sum(Path(f).stat().st_size for f in archive.files)
    assert not only(archive).tree.ordered
    assert_same(archive, only(archive), tensors())


def test_the_folder_stands_for_its_index(index: Path) -> None:
    assert open_checkpoint(index.parent).path == str(index)


def test_missing_shards_are_named(index: Path) -> None:
    (index.parent / SECOND).unlink()
    assert SECOND in refusal(index) and "download" in refusal(index)


def test_a_key_that_its_shard_lacks(index: Path) -> None:
    change(index, lm_head__weight=FIRST)
    assert "lm_head.weight" in refusal(index)


def test_a_key_that_the_index_does_not_list(index: Path) -> None:
    change(index, conv__weight=None)
    assert "does not list" in refusal(index) and "conv.weight" in refusal(index)


def test_a_key_in_two_shards(index: Path) -> None:
    save_safetensors(
        index.parent / SECOND, {**dict(list(tensors().items())[3:]), "conv.bias": torch.zeros(4)}
    )
    assert "'conv.bias' is in two shards" in refusal(index)


def test_a_key_twice_in_the_index(index: Path) -> None:
    text = index.read_text().replace('"weight_map": {', f'"weight_map": {{"conv.weight": "{FIRST}", ', 1)
    index.write_text(text)
    assert "'conv.weight' twice" in refusal(index)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../x",
        "..",
        ".",
        "C:\\x",
        "\\\\host\\x",
        "a//b",
        "x\0y",
        "..\\x",
    ],
)
def test_shards_stay_in_their_folder(name: str, index: Path) -> None:
    save_safetensors(index.parent.parent / "secret.safetensors", {"conv.weight": torch.zeros(1)})
    change(index, conv__weight=name)
    assert "leads out of the folder" in refusal(index)


def test_a_link_out_of_the_folder_is_refused(index: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.safetensors"
    os.replace(index.parent / FIRST, elsewhere)
    (index.parent / FIRST).symlink_to(elsewhere)
    assert "leads out of the folder" in refusal(index)


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_shards(snapshot / INDEX, tensors())
    for number, name in enumerate((FIRST, SECOND)):
        os.replace(snapshot / name, blobs / f"hash{number}")
        (snapshot / name).symlink_to(f"../../blobs/hash{number}")
    assert only(open_checkpoint(snapshot / INDEX)).tree.numel == 123


def test_shards_in_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    save_zip(tmp_path / "parts" / "1.bin", {"a": torch.ones(1)})
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": {"a": "parts/1.bin"}}))
    assert list(only(open_checkpoint(tmp_path / "x.index.json")).tree.specs) == ["a"]


def test_a_shard_that_is_a_git_lfs_pointer(index: Path) -> None:
    (index.parent / FIRST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 10\n")
    with pytest.raises(UnknownFormatError, match=r"00001-of-00002.*git-lfs.*git lfs pull"):
        open_checkpoint(index)


def test_a_truncated_shard_is_named(index: Path) -> None:
    (index.parent / FIRST).write_bytes((index.parent / FIRST).read_bytes()[:-1])
    with pytest.raises(ReadError, match="00001-of-00002"):
        open_checkpoint(index)


@pytest.mark.parametrize("content", ['{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_weight_maps_that_are_none(content: str, index: Path) -> None:
    index.write_text(content)
    assert refusal(index)


def test_an_index_cut_short(index: Path) -> None:
    index.write_text(index.read_text()[:-10])
    assert "no complete JSON" in refusal(index)


def test_ties_within_a_shard_of_torch_are_kept(tmp_path: Path) -> None:
    weight = torch.ones(3)
    save_zip(tmp_path / "1.bin", {"embed": weight, "head": weight})
    save_zip(tmp_path / "2.bin", {"other": torch.ones(3)})
    content = {"weight_map": {"embed": "1.bin", "head": "1.bin", "other": "2.bin"}}
    (tmp_path / "a.bin.index.json").write_text(json.dumps(content))
    archive = open_checkpoint(tmp_path / "a.bin.index.json")
    assert only(archive).tree.ties == (("embed", "head"),)
    assert only(archive).tree.ordered
