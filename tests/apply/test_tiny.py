"""Many tiny tensors, which are found, read, summed and written many at once, are what they are one by one."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ckptdoctor as ckd
from ckptdoctor.errors import ApplyError, CorruptCheckpointError, StalePlanError
from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.spans import Span
from ckptdoctor.formats.tensors import TensorReader
from ckptdoctor.trees import ParamTree
from ckptdoctor.writers import Piece, stream

SIZE = 40_000
HEAD, TAIL = b"<%d>", b"</%d:%d>"


def pieces() -> st.SearchStrategy[list[tuple[int, int, bool, bool]]]:
    """Offset and bytes in the source, whether made in memory instead, whether its checksum is known."""
    near = st.integers(0, 300).map(lambda gap: -gap - 1)  # relative to the end of the one before
    place = st.one_of(near, near, near, st.integers(0, SIZE - 9000))
    size = st.sampled_from([0, 1, 8, 100, 128, 4095, 4096, 9000])
    return st.lists(st.tuples(place, size, st.sampled_from([False, False, True]), st.booleans()), max_size=60)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(drawn=pieces(), around=st.booleans(), start=st.integers(0, 100))
def test_rows_are_written_as_one_by_one(drawn, around, start, tmp_path: Path) -> None:
    data = bytes(i * i % 251 for i in range(SIZE))
    (tmp_path / "in").write_bytes(data)
    rows, contents, end = [], [], 0
    for place, size, made, summed in drawn:
        at = min(end - place - 1 if place < 0 else place, SIZE - size)
        content, end = data[at : at + size], at + size
        span = Span(str(tmp_path / "in"), at, zlib.crc32(content) if summed else None, summed)
        tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8) if size else torch.zeros(0).byte()
        rows.append(Piece((size,), "uint8", None if made else span, lambda tensor=tensor: tensor))
        contents.append(content)
    sums = [zlib.crc32(content) for content in contents]
    heads = [HEAD % i if around else b"" for i in range(len(rows))]
    tails = [TAIL % (i, crc) if around else b"" for i, crc in enumerate(sums)]
    places = [start]
    for parts in zip(heads, contents, tails, strict=True):
        places.append(places[-1] + sum(map(len, parts)))
    asked = stream.Rows(rows, places)
    if around:

        def named(first, found):
            return [TAIL % (first + i, crc) for i, crc in enumerate(found)]

        asked = stream.Rows(rows, places, lambda first, last: heads[first:last], named)
    (tmp_path / "out").write_bytes(b"")
    descriptor, told = os.open(tmp_path / "out", os.O_RDWR), [0]
    try:
        assert stream.fill_rows(descriptor, asked, Files(), told.append) == sums
    finally:
        os.close(descriptor)
    due = b"".join(part for row in zip(heads, contents, tails, strict=True) for part in row)
    assert (tmp_path / "out").read_bytes()[start:] == due and sum(told) == len(due)


def tensors(count: int) -> dict[str, torch.Tensor]:
    kinds = [
        torch.randn(32),
        torch.randn(2, 3).half(),
        torch.tensor(7),
        torch.zeros(0, 4),
        torch.randn(3).double(),
    ]
    return {f"module.b.{i // 5}.p{i % 5}": kinds[i % 5].clone() for i in range(count)}


def without_prefix(tree: ParamTree) -> ParamTree:
    return ParamTree({key.removeprefix("module."): spec for key, spec in tree.specs.items()})


def save_big_endian(made: dict[str, torch.Tensor], path: Path) -> None:
    whole = io.BytesIO()
    torch.save(made, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))


def save_views(made: dict[str, torch.Tensor], path: Path) -> None:
    base = torch.randn(40, 4)
    torch.save({**made, **{f"module.v.{i}": base[i] for i in range(40)}, "module.t": base.t()}, path)


def save_packed(made: dict[str, torch.Tensor], path: Path) -> None:
    whole = io.BytesIO()
    torch.save(made, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def save_legacy(made: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(made, path, _use_new_zipfile_serialization=False)


SAVES = [torch.save, save_big_endian, save_views, save_packed, save_legacy, save_file]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("order", ["as saved", "backwards", "some"])
def test_places_of_many_are_those_of_each(save, order, tmp_path: Path) -> None:
    path = tmp_path / f"m{'.safetensors' if save is save_file else '.pth'}"
    save(tensors(300), path)
    archive = open_checkpoint(path)
    reader = TensorReader(archive, archive.state_dicts[0])
    specs = reader.state_dict.tree.specs
    keys = {"as saved": list(specs), "backwards": list(specs)[::-1], "some": list(specs)[3:200:7]}[order]
    dtypes = [specs[key].dtype for key in keys]
    assert reader.spans(keys, dtypes) == [reader.span(*row) for row in zip(keys, dtypes, strict=True)]
    dtypes[5] = "float8_e5m2"
    found = reader.spans(keys, dtypes)
    assert found[5] is None and found == [reader.span(*row) for row in zip(keys, dtypes, strict=True)]
    assert reader.spans([], []) == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("save", SAVES)
def test_many_tiny_tensors_are_written(save, verify, suffix, tmp_path: Path) -> None:
    path, out = tmp_path / f"m{'.safetensors' if save is save_file else '.pth'}", tmp_path / f"o{suffix}"
    made = tensors(300)
    save(made, path)
    tree = without_prefix(ckd.inspect(path).state_dicts[0].tree)
    ckd.apply(ckd.plan(tree, path), path, model=tree, out=out, verify=verify)
    found = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    assert list(found) == list(tree.specs) or suffix == ".safetensors"
    if save is not save_big_endian:  # whose bytes mean other numbers there
        assert all(torch.equal(found[key.removeprefix("module.")], value) for key, value in made.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_changed_byte_among_many_tiny_tensors_is_refused(suffix, tmp_path: Path) -> None:
    path, out = tmp_path / "m.pth", tmp_path / f"o{suffix}"
    torch.save(tensors(300), path)
    tree = without_prefix(ckd.inspect(path).state_dicts[0].tree)
    plan, raw = ckd.plan(tree, path), bytearray(path.read_bytes())
    reader = TensorReader(open_checkpoint(path), open_checkpoint(path).state_dicts[0])
    span = reader.span("module.b.31.p0", "float32")
    assert span is not None
    raw[span.offset + 3] ^= 4
    path.write_bytes(raw)
    with pytest.raises(CorruptCheckpointError, match=f"the bytes at {span.offset} do not fit their checksum"):
        ckd.apply(plan, path, model=tree, out=out, verify=False)
    assert not out.exists()


def test_the_plan_of_a_diagnosis_is_for_its_own_trees_only(tmp_path: Path) -> None:
    """It is not worked out again, and still only taken for the trees that it was made for."""

    from ckptdoctor.api import write_diagnosed

    path, out = tmp_path / "m.pth", tmp_path / "o.pth"
    torch.save(tensors(20), path)
    tree = without_prefix(ckd.inspect(path).state_dicts[0].tree)
    found = ckd.diagnose(tree, path)
    assert write_diagnosed(found, out).loaded == 20
    assert found.plan is not None
    again = write_diagnosed(replace(found, plan=replace(found.plan)), out)
    assert again.loaded == 20, "another plan is worked out"
    other = ParamTree(dict(list(tree.specs.items())[:-1]))
    with pytest.raises(StalePlanError):
        write_diagnosed(replace(found, target=replace(found.target, tree=other)), out)


def test_a_plan_for_other_keys_names_them(tmp_path: Path) -> None:
    from ckptdoctor.loading import apply_to_file
    from tests.apply.fakes import Plan, Source, load

    tree = ParamTree({"a": ckd.inspect(_saved(tmp_path)).state_dicts[0].tree["a"]})
    with pytest.raises(ApplyError, match=r"`b`.*Make a new plan"):
        apply_to_file(Plan({"a": load("a"), "b": load("b")}), Source({}), tmp_path / "o.pth", tree)


def _saved(folder: Path) -> Path:
    torch.save({"a": torch.ones(2)}, folder / "a.pth")
    return folder / "a.pth"
