"""New files byte by byte: laid out as torch does it, sums carried over, in several files, stopped half way."""

from __future__ import annotations

import json
import pickletools
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils import serialization

import ckptdoctor as ckd
from ckptdoctor.errors import ApplyError, CorruptCheckpointError, VerifyError
from ckptdoctor.formats import open_checkpoint, parallel
from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.tensors import TensorReader
from ckptdoctor.ops.bits import same_bits
from ckptdoctor.writers import Contents, Piece, stream, write_contents, writeback
from ckptdoctor.writers.shards import size_of
from ckptdoctor.writers.torch_zip import Layout

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "complex32",
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e5m2",
]


def state() -> OrderedDict[str, torch.Tensor]:
    made = OrderedDict((f"m.{n}", torch.zeros(3, 2).to(getattr(torch, n))) for n in DTYPES)
    made |= {"m.empty": torch.zeros(0, 4), "m.scalar": torch.tensor(3), "m.long": torch.arange(100_000.0)}
    made |= {"n." + "x" * 300: torch.ones(5), "n.ünï": torch.ones(1, 1, 1, 1, 2)}
    made._metadata = OrderedDict({"": {"version": 1}, "m": {"version": 70_000}})
    return made


def contents(tensors: dict[str, torch.Tensor]) -> Contents:
    pieces: dict[int, Piece] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        piece = Piece(tuple(tensor.shape), name, make=lambda tensor=tensor: tensor)
        pieces.setdefault(id(tensor), piece)
    return Contents({k: pieces[id(t)] for k, t in tensors.items()}, getattr(tensors, "_metadata", {}))


def written(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    write_contents(contents(tensors), path, Files())
    return path


def objects(path: Path) -> list[object]:
    """What the opcodes push, with the memo looked up."""
    memo: dict[object, object] = {}
    last: object = None
    found = []
    with zipfile.ZipFile(path) as file:
        (name,) = [n for n in file.namelist() if n.endswith("data.pkl")]
        for op, arg, _ in pickletools.genops(file.read(name)):
            if "PUT" in op.name:
                memo[arg] = last
                continue
            last = memo[arg] if "GET" in op.name else (op.name, arg)
            found.append(last)
    return found


def test_the_pickle_says_what_torch_says(tmp_path: Path) -> None:
    made = state()
    torch.save(made, tmp_path / "theirs.pth")
    written(made, tmp_path / "ours.pth")
    named = {("GLOBAL"), ("BINUNICODE")}
    ours, theirs = (objects(tmp_path / f"{n}.pth") for n in ("ours", "theirs"))
    assert [o for o in ours if isinstance(o, tuple) and o[0] in named] == [
        o for o in theirs if isinstance(o, tuple) and o[0] in named
    ]


def test_the_zip_is_laid_out_as_torch_does_it(tmp_path: Path) -> None:
    made = state()
    torch.save(made, tmp_path / "archive.pth")  # torch names the root by the file
    written(made, tmp_path / "ours.pth")
    with zipfile.ZipFile(tmp_path / "archive.pth") as theirs, zipfile.ZipFile(tmp_path / "ours.pth") as ours:
        assert ours.testzip() is None
        assert ours.namelist() == theirs.namelist()
        for a, b in zip(ours.infolist(), theirs.infolist(), strict=True):
            assert (a.flag_bits, a.compress_type, a.date_time, a.extra) == (
                b.flag_bits,
                b.compress_type,
                b.date_time,
                b.extra,
            )
            if "/data/" in a.filename:
                assert (a.CRC, a.file_size) == (b.CRC, b.file_size)
                assert ours.read(a) == theirs.read(b)
        ids = [ours.read("archive/.data/serialization_id"), theirs.read("archive/.data/serialization_id")]
        assert [len(i) for i in ids] == [40, 40] and ids[0].isdigit()


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_it_with_computed_offsets_too(tmp_path: Path, mmap: bool, monkeypatch) -> None:
    made = state()
    path = written(made, tmp_path / "ours.pth")
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    with serialization.config.patch("load.calculate_storage_offsets", True):
        found = torch.load(path, weights_only=True, mmap=mmap)
    assert type(found) is OrderedDict and list(found) == list(made)
    assert found._metadata == made._metadata
    assert all(same_bits(found[key], value) for key, value in made.items())


def test_what_is_larger_than_32_bits_takes_zip64_fields_where_torch_has_them() -> None:
    """The formula of caffe2's getPadding; no file of that size is written."""
    big = 6 << 30
    made = Layout([b"a/data/0", b"a/data/1", b"a/v"], [big, big, 0])
    first, second, last = made.heads(0, 3)
    assert made.starts[0] == 64 + 0 and len(first) == made.starts[0]
    assert made.headers[1] == made.starts[0] + big + 24
    assert made.starts[1] % 64 == 0 and len(second) == made.starts[1] - made.headers[1]
    assert second[30 + 8 : 30 + 8 + 4] == b"\x01\x00\x18\x00", "sizes and offset"
    assert last[30 + 3 : 30 + 3 + 4] == b"\x01\x00\x08\x00", "the offset alone"
    assert [len(tail) for tail in made.tails(0, [5, 6, 1])] == [24, 24, 0]
    second_entry = made.directory([5, 6, 7]).split(b"PK\x01\x02")[2]
    assert second_entry[-8:] == made.headers[1].to_bytes(8, "little")


def test_tied_keys_are_one_storage(tmp_path: Path) -> None:
    weight = torch.randn(3, 2)
    path = written({"a": weight, "b": weight, "c": torch.ones(1)}, tmp_path / "t.pth")
    found = torch.load(path, weights_only=True)
    assert found["a"].data_ptr() == found["b"].data_ptr() and torch.equal(found["b"], weight)
    with zipfile.ZipFile(path) as file:
        assert sum("/data/" in n for n in file.namelist()) == 2 + 0 + 0


def test_safetensors_are_byte_for_byte_what_their_own_library_writes(tmp_path: Path) -> None:
    made = {k: v for k, v in state().items() if v.dtype not in (torch.complex32, torch.complex128)}
    save_file(made, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = written(made, tmp_path / "ours.safetensors")
    found = load_file(ours)
    assert all(same_bits(found[k], v) for k, v in made.items())
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("ours", "theirs")]
    assert sizes[0] == sizes[1]
    with safe_open(ours, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def copied(path: Path) -> tuple[TensorReader, Contents]:
    archive = open_checkpoint(path)
    reader = TensorReader(archive, archive.state_dicts[0])
    pieces = {}
    for key, spec in reader.state_dict.tree.specs.items():
        span = reader.span(key, spec.dtype)
        assert span is not None
        pieces[key] = Piece(spec.shape, spec.dtype, span)
    return reader, Contents(pieces)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bytes_are_copied_between_all_formats(tmp_path, monkeypatch, threads, kind, suffix) -> None:
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: threads)
    monkeypatch.setattr(stream, "BLOCK", 512)
    big = torch.randn(9000)
    made = {f"w{i}": torch.full((n,), float(i)) for i, n in enumerate((1, 7, 63, 64, 65, 1000, 4097))}
    made |= {"view": big[11:8000], "half": torch.randn(777).half()}
    source = tmp_path / f"in.{kind if kind != 'legacy' else 'pth'}"
    if kind == "safetensors":
        save_file({k: v.clone() for k, v in made.items()}, source)
    else:
        torch.save(made, source, _use_new_zipfile_serialization=kind == "pth")
    reader, todo = copied(source)
    write_contents(todo, tmp_path / f"out{suffix}", reader.files)
    found = (load_file if suffix == ".safetensors" else torch.load)(tmp_path / f"out{suffix}")
    assert all(torch.equal(found[k], v) for k, v in made.items()) and len(found) == len(made)
    if suffix == ".pth":
        with zipfile.ZipFile(tmp_path / "out.pth") as file:
            assert file.testzip() is None
        assert found["view"].untyped_storage().nbytes() == 4 * 7989, "cut to size"


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_written_goes_to_the_disk_at_once_and_no_byte_twice(tmp_path, monkeypatch, threads) -> None:
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: threads)
    monkeypatch.setattr(stream, "EARLY", 1 << 20)
    sent, real = [], writeback.begin
    monkeypatch.setattr(writeback, "begin", lambda *args: sent.append(args) or real(*args))
    torch.save({f"w{i}": torch.randn(700_000) for i in range(8)}, tmp_path / "in.pth")
    reader, todo = copied(tmp_path / "in.pth")
    write_contents(todo, tmp_path / "out.pth", reader.files)
    ranges = sorted((offset, offset + count) for _, offset, count in sent)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges)) and len(ranges) > 8
    assert sum(b - a for a, b in ranges) > 0.9 * (tmp_path / "out.pth").stat().st_size
    writeback.begin(-1, 0, 1)  # what it cannot do is left to the fsync


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_bad_checksum_of_the_source_ends_the_copy_and_leaves_nothing(
    tmp_path, monkeypatch, threads, suffix
) -> None:
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: threads)
    torch.save({f"w{i}": torch.full((3000,), float(i)) for i in range(9)}, tmp_path / "in.pth")
    raw = bytearray((tmp_path / "in.pth").read_bytes())
    raw[raw.find(torch.full((3000,), 5.0).numpy().tobytes()) + 7] ^= 1
    (tmp_path / "in.pth").write_bytes(raw)
    reader, todo = copied(tmp_path / "in.pth")
    with pytest.raises(CorruptCheckpointError, match="do not fit their checksum"):
        write_contents(todo, tmp_path / f"out{suffix}", reader.files)
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))


@pytest.fixture
def ddp(tmp_path: Path) -> Path:
    torch.save({f"module.{k}": v for k, v in model().state_dict().items()}, tmp_path / "ddp.pth")
    return tmp_path / "ddp.pth"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_shards_and_their_index(tmp_path: Path, ddp: Path, suffix: str) -> None:
    net, out = model(), tmp_path / "out" / f"model{suffix}"
    out.parent.mkdir()
    told: list[tuple[int, int]] = []
    receipt = ckd.apply(
        ckd.plan(net, ddp), ddp, model=net, out=out, max_shard_size="40kB", progress=lambda *n: told.append(n)
    )
    names = sorted(p.name for p in out.parent.iterdir())
    assert names == sorted(
        [f"model-0000{i}-of-00003{suffix}" for i in (1, 2, 3)] + [f"model{suffix}.index.json"]
    )
    index = json.loads((out.parent / f"model{suffix}.index.json").read_text())
    assert list(index["weight_map"]) == list(net.state_dict())
    assert index["metadata"]["total_size"] == 6 * (64 * 64 + 64) * 4
    assert "in 3 parts" in str(receipt) and receipt.loaded == 12 and told[-1][0] == told[-1][1]
    target = model()
    ckd.auto_load(target, out.parent)
    source = torch.load(ddp)
    assert all(torch.equal(v, source[f"module.{k}"]) for k, v in target.state_dict().items())
    with pytest.raises(ApplyError, match="exists; shards replace nothing"):
        ckd.apply(ckd.plan(net, ddp), ddp, model=net, out=out, max_shard_size="40kB")
    assert sorted(p.name for p in out.parent.iterdir()) == names


def test_tied_keys_share_a_shard_and_headers_never_grow_too_long(tmp_path: Path, monkeypatch) -> None:
    from ckptdoctor.formats import safetensors as format
    from ckptdoctor.writers import safetensors_file, shards

    weight = torch.randn(100)
    state = {"a": weight, **{f"w{i}": torch.full((100,), float(i)) for i in range(9)}, "z": weight}
    write_contents(contents(state), tmp_path / "t.pth", Files(), max_shard_size=1000)
    index = json.loads((tmp_path / "t.pth.index.json").read_text())["weight_map"]
    assert index["z"] == index["a"] and len(set(index.values())) == 5
    assert sum(p.stat().st_size for p in tmp_path.glob("t-*")) < 5 * 2000 + 10 * 400, "written once"
    for module in (format, safetensors_file, shards):
        monkeypatch.setattr(module, "LARGEST_HEADER", 600)
    with pytest.raises(ApplyError, match=r"header for 11 keys .* --max-shard-size 5GB"):
        write_contents(contents(state), tmp_path / "s.safetensors", Files())
    write_contents(contents(state), tmp_path / "s.safetensors", Files(), max_shard_size=10**9)
    names = sorted(p.name for p in tmp_path.glob("s-*"))
    assert len(names) > 2
    found = {k: v for n in names for k, v in load_file(tmp_path / n).items()}
    assert found.keys() == state.keys() and all(torch.equal(found[k], v) for k, v in state.items())


def test_a_header_that_is_too_long_is_refused_with_the_flag_that_helps(
    tmp_path: Path, ddp: Path, monkeypatch, capsys
) -> None:
    from ckptdoctor.cli import main
    from ckptdoctor.formats import safetensors as format
    from ckptdoctor.writers import safetensors_file, shards

    for module in (format, safetensors_file, shards):
        monkeypatch.setattr(module, "LARGEST_HEADER", 700)
    torch.save(model().state_dict(), tmp_path / "reference.pth")
    command = ["repair", str(tmp_path / "reference.pth"), str(ddp), "-o", str(tmp_path / "o.safetensors")]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    (flag,) = re.findall(r"(--max-shard-size \w+)", capsys.readouterr().err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ddp.pth", "reference.pth"]
    with pytest.raises(SystemExit) as stop:
        main([*command, *flag.split()])
    assert not stop.value.code
    index = json.loads((tmp_path / "o.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == model().state_dict().keys() and len(set(index.values())) > 1


def test_a_failure_in_any_shard_leaves_none(tmp_path: Path, ddp: Path, monkeypatch) -> None:
    import ckptdoctor.writers as writers

    net, seen = model(), []
    save = writers.WRITERS["safetensors"][1]

    def fail_third(*args):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setitem(writers.WRITERS, "safetensors", ((".safetensors",), fail_third))
    with pytest.raises(KeyboardInterrupt):
        ckd.apply(ckd.plan(net, ddp), ddp, model=net, out=tmp_path / "m.safetensors", max_shard_size=40_000)
    assert [p.name for p in tmp_path.iterdir()] == ["ddp.pth"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_interruption_in_the_middle_leaves_nothing(tmp_path, ddp, monkeypatch, threads, suffix) -> None:
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: threads)
    net, told = model(), []

    def interrupt(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(stream, "BLOCK", 4096)
    plan = ckd.plan(net, ddp)
    with pytest.raises(KeyboardInterrupt):
        ckd.apply(plan, ddp, model=net, out=tmp_path / f"o{suffix}", progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["ddp.pth"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("half", [False, True], ids=["copied", "cast"])
def test_what_is_compared_is_told_and_can_be_interrupted(
    tmp_path: Path, ddp: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, half: bool
) -> None:
    from ckptdoctor.verify import file as verify

    monkeypatch.setattr(verify, "TOLD", 4096)
    net, out = model().half() if half else model(), tmp_path / f"o{suffix}"
    plan, nbytes = ckd.plan(net, ddp), sum(t.nbytes for t in net.state_dict().values())
    told: list[tuple[int, int]] = []
    for check, due in ((True, 2 * nbytes), (False, nbytes)):
        told.clear()
        ckd.apply(plan, ddp, model=net, out=out, verify=check, progress=lambda *now: told.append(now))
        assert told[-1] == (due, due) and told == sorted(told) and {total for _, total in told} == {due}
        out.unlink()

    def interrupt(done: int, total: int) -> None:
        if done > nbytes + 4096:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckd.apply(plan, ddp, model=net, out=out, progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["ddp.pth"]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("2GiB", 2 << 30), ("1.5 mb", 1_500_000), (77, 77), ("1k", 1000)]
)
def test_sizes(text, size) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "five", "5XB", "GB"])
def test_what_is_no_size(text) -> None:
    with pytest.raises(ApplyError, match="is no size; write 5GB"):
        size_of(text)


def test_a_repair_without_verification_says_so_and_reads_nothing_back(tmp_path: Path, ddp: Path) -> None:
    net = model()
    receipt = ckd.apply(ckd.plan(net, ddp), ddp, model=net, out=tmp_path / "o.pth", verify=False)
    assert not receipt.verified
    net.load_state_dict(torch.load(tmp_path / "o.pth", weights_only=True))


MEMORY = """
    import resource, sys, threading, torch
    import ckptdoctor as ckd
    from torch import nn
    from ckptdoctor.verify import file as verify

    def private():
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
    most, compare = 0.0, verify.same_bits
    def watched(*args):
        global most
        most = max(most, private())
        return compare(*args)
    verify.same_bits = watched
    with torch.device("meta"):
        small, model = nn.Linear(2, 2), nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(24)))
    ckd.apply(ckd.plan(small, sys.argv[2]), sys.argv[2], model=small, out=sys.argv[3])
    before = private()
    ckd.apply(ckd.plan(model, sys.argv[1]), sys.argv[1], model=model, out=sys.argv[3],
              progress=lambda *_: watched(torch.ones(1), torch.ones(1)))
    print(most - before)
"""


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("half", [False, True], ids=["copied", "cast"])
def test_a_repair_needs_little_memory_whatever_the_size(tmp_path: Path, half: bool, suffix: str) -> None:
    import os
    import textwrap

    for name, net in (
        ("a", nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(24)))),
        ("b", nn.Linear(2, 2)),
    ):
        rows = {f"module.{k}": v.half() if half else v for k, v in net.state_dict().items()}
        torch.save(rows, tmp_path / f"{name}.pth")
    files = [str(tmp_path / n) for n in ("a.pth", "b.pth", f"out{suffix}")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), *files],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64, "MB for a file of 96 MB with tensors of 4 MB"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("what", ["bytes", "checksum"])
def test_verification_sees_wrong_bytes_of_what_was_copied(tmp_path, ddp, monkeypatch, suffix, what) -> None:
    """One byte of one tensor is written wrong, with a checksum that fits or with the one that is due."""
    if (what, suffix) == ("checksum", ".safetensors"):
        return  # the format has none
    one = stream._Job.one

    def wrong(self, writer, piece: Piece) -> int:
        crc = one(self, writer, piece)
        if piece.nbytes == 64 * 64 * 4 and what == "bytes":
            writer.flush()
            last = stream.os.pread(self.descriptor, 1, writer._offset - 1)
            stream.os.pwrite(self.descriptor, bytes([last[0] ^ 1]), writer._offset - 1)
        return crc ^ (what == "checksum")

    monkeypatch.setattr(stream._Job, "one", wrong)
    with pytest.raises(VerifyError, match=r"differs from the source|does not fit its checksum"):
        ckd.apply(ckd.plan(model(), ddp), ddp, model=model(), out=tmp_path / f"o{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["ddp.pth"]


def fused(net: nn.Module) -> dict[str, torch.Tensor]:
    state = net.state_dict()
    return {"qkv.weight": torch.cat([state[f"{n}.weight"] for n in "qkv"])}


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for n in "qkv":
            self.add_module(n, nn.Linear(6, 8, bias=False))


@pytest.mark.parametrize(("op", "made"), [("split", False), ("transposed", True)])
def test_parts_that_are_consecutive_bytes_are_copied_and_others_are_made(
    tmp_path, monkeypatch, op, made
) -> None:
    from ckptdoctor.apply import file as apply

    net, file = Parts(), tmp_path / "in.pth"
    whole = fused(net)["qkv.weight"]
    torch.save({"qkv.weight": whole if op == "split" else whole.T.contiguous()}, file)
    chain = "chunk(0,{},3)" if op == "split" else "chunk(1,{},3)|transpose(0,1)"
    decisions = [f"op={n}.weight={chain.format(i)}" for i, n in enumerate("qkv")]
    count, real = [], apply.to_write
    monkeypatch.setattr(apply, "to_write", lambda *args: count.append(1) or real(*args))
    ckd.apply(ckd.plan(net, file, decisions=decisions), file, model=net, out=tmp_path / "o.pth")
    found = torch.load(tmp_path / "o.pth")
    assert all(torch.equal(found[k], v) for k, v in net.state_dict().items())
    assert bool(count) == made
    assert found["k.weight"].untyped_storage().nbytes() == 8 * 6 * 4, "cut to size"


def test_a_damaged_tensor_of_which_parts_are_copied_is_refused(tmp_path: Path) -> None:
    net, file = Parts(), tmp_path / "in.pth"
    torch.save(fused(net), file)
    raw = bytearray(file.read_bytes())
    raw[raw.find(fused(net)["qkv.weight"].numpy().tobytes()) + 7] ^= 1
    file.write_bytes(raw)
    plan = ckd.plan(net, file, decisions=[f"op={n}.weight=chunk(0,{i},3)" for i, n in enumerate("qkv")])
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        ckd.apply(plan, file, model=net, out=tmp_path / "o.pth", verify=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]
