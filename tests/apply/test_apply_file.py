"""Written files: accepted by plain torch and safetensors, complete or absent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ckptdoctor.errors import ApplyError, VerifyError
from ckptdoctor.loading import apply_to_file
from ckptdoctor.targets.module import snapshot
from tests.apply.fakes import Plan, Source, identity, keep, load, tie
from tests.apply.test_apply_model import Tied, WithExtra, random_state, small

DTYPES = """float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 bool complex64
    float8_e4m3fn float8_e5m2"""


def write(plan, state, out, model, **kwargs):
    reader = state if callable(state) else Source(state)
    return apply_to_file(plan, reader, out, snapshot(model), **kwargs)


def plain(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def left(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize(
    "make",
    [small, lambda: small().half(), lambda: nn.DataParallel(small()), Tied],
    ids=["plain", "half", "dp", "tied"],
)
def test_the_file_loads_strictly_with_plain_tools(tmp_path, make, suffix):
    model, out = make(), tmp_path / f"out{suffix}"
    state = random_state(model)
    plan = identity(model)
    if isinstance(model, Tied):
        plan.fills["head.weight"] = tie("head.weight", "embed.weight")
        state["head.weight"] = state["embed.weight"]
    receipt = write(plan, state, out, model, source="in.pth", target="model.py:net")
    found = plain(out)
    assert list(found) == list(model.state_dict()) or suffix == ".safetensors"
    model.load_state_dict(found, strict=True)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert left(tmp_path) == [out.name]
    assert receipt.out == str(out) and str(out) in str(receipt)


def test_a_torch_file_keeps_ties_order_metadata_and_no_byte_too_many(tmp_path):
    model, out = Tied(), tmp_path / "out.pth"
    big = torch.randn(1000, 4)
    state = random_state(model) | {"embed.weight": big[10:17]}
    plan = identity(model, **{"head.weight": tie("head.weight", "embed.weight")})
    write(plan, state, out, model, source_versions={"norm": 1})
    found = plain(out)
    assert type(found) is OrderedDict and found._metadata["norm"] == {"version": 1}
    assert found._metadata["head"] == {"version": 1} and list(found) == list(model.state_dict())
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert found["embed.weight"].untyped_storage().nbytes() == 7 * 4 * 4
    assert torch.equal(found["embed.weight"], big[10:17])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_two_different_copies_of_a_tied_tensor_are_refused_and_equal_ones_become_one(tmp_path, suffix):
    model, out = Tied(), tmp_path / f"out{suffix}"
    state = random_state(model)
    with pytest.raises(ApplyError, match=r"ties `embed.weight` and `head.weight`.*--drop 'head.weight'"):
        write(identity(model), state, out, model)
    assert left(tmp_path) == []
    write(identity(model), state | {"head.weight": state["embed.weight"].clone()}, out, model)
    found = plain(out)
    assert torch.equal(found["head.weight"], state["embed.weight"])
    if suffix == ".pth":
        assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "dtype",
    [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "uint16",
        "bool",
        "complex64",
        "float8_e4m3fn",
        "float8_e5m2",
    ],
)
def test_every_dtype_survives_bit_for_bit(tmp_path, dtype, suffix):
    dtype = getattr(torch, dtype)
    model = nn.Module()
    model.register_buffer("x", torch.zeros(3, 4, dtype=dtype))
    model.register_buffer("scalar", torch.zeros((), dtype=dtype))
    model.register_buffer("empty", torch.zeros(0, 4, dtype=dtype))
    raw = torch.randint(0, 2 if dtype == torch.bool else 100, (3, 4 * dtype.itemsize), dtype=torch.uint8)
    state = {
        "x": raw.view(dtype),
        "scalar": raw.view(dtype)[1, 2].clone(),
        "empty": torch.zeros(0, 4, dtype=dtype),
    }
    out = tmp_path / f"o{suffix}"
    write(identity(model), state, out, model)
    found = plain(out)
    assert torch.equal(found["x"].view(torch.uint8), raw) and found["x"].dtype == dtype
    assert found["scalar"].shape == () and found["empty"].shape == (0, 4)


def test_kept_counters_need_no_model_and_other_kept_values_do(tmp_path):
    model, out = small(), tmp_path / "out.pth"
    plan = identity(model, **{"1.num_batches_tracked": keep("1.num_batches_tracked")})
    write(plan, random_state(model), out, model)
    assert plain(out)["1.num_batches_tracked"].item() == 0
    plan.fills["4.bias"] = keep("4.bias", "reinit")
    with pytest.raises(ApplyError, match=r"`4.bias`.*Give the model"):
        write(plan, random_state(model), tmp_path / "other.pth", model)
    assert left(tmp_path) == ["out.pth"]
    receipt = write(plan, random_state(model), out, model, initial=model.state_dict().__getitem__)
    assert torch.equal(plain(out)["4.bias"], model[4].bias) and receipt.reinitialised == 1


def test_extra_state_comes_from_the_model_and_not_into_safetensors(tmp_path):
    model, out = WithExtra(), tmp_path / "out.pth"
    state = random_state(model)
    with pytest.raises(ApplyError, match="extra state"):
        write(identity(model), state, out, model)
    write(identity(model), state, out, model, initial=model.state_dict().__getitem__)
    WithExtra().load_state_dict(plain(out), strict=True)
    with pytest.raises(ApplyError, match=r"tensors only, not `_extra_state`"):
        write(
            identity(model), state, tmp_path / "o.safetensors", model, initial=model.state_dict().__getitem__
        )
    assert left(tmp_path) == ["out.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_failure_anywhere_leaves_no_file_and_the_old_one_intact(tmp_path, suffix, monkeypatch):
    model, out = small(), tmp_path / f"out{suffix}"
    state, plan = random_state(model), identity(model)
    count = Source(state)
    write(plan, count, tmp_path / f"probe{suffix}", model)
    (tmp_path / f"probe{suffix}").unlink()
    for existing in (None, b"the old file"):
        if existing:
            out.write_bytes(existing)
        for n in range(count.reads):
            error = (OSError("gone"), KeyboardInterrupt())[n % 2]
            with pytest.raises((ApplyError, KeyboardInterrupt)):
                write(plan, Source(state, fail_at=n, error=error), out, model)
            assert left(tmp_path) == ([out.name] if existing else [])
        for name in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(
                    os, name, lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device"))
                )
                with pytest.raises(ApplyError, match=r"No space left on device; .* are needed, .* are free"):
                    write(plan, state, out, model)
        assert left(tmp_path) == ([out.name] if existing else [])
        assert not existing or out.read_bytes() == existing


def test_a_writer_that_corrupts_is_found_before_the_rename(tmp_path, monkeypatch):
    import ckptdoctor.writers as writers

    model, out = nn.Linear(2, 2), tmp_path / "out.pth"

    def corrupt(contents, path, *_):
        torch.save(OrderedDict((k, piece.make() + 1) for k, piece in contents.pieces.items()), path)

    monkeypatch.setitem(writers.WRITERS, "pth", ((".pth",), corrupt))
    with pytest.raises(VerifyError, match="no file was written"):
        write(identity(model), random_state(model), out, model)
    assert left(tmp_path) == []


def test_places_that_cannot_be_written_are_named_before_anything_is_read(tmp_path):
    model, source = nn.Linear(2, 2), Source({})
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "file").write_text("")
    for out, why in (
        (tmp_path / "nowhere" / "out.pth", "does not exist"),
        (tmp_path / "folder.pth", "is a folder"),
        (tmp_path / "file" / "out.pth", "is not a folder"),
        (tmp_path / "out.xyz", "suffix"),
        (tmp_path / "out", "suffix"),
        ("/proc/out.pth", "cannot be written|could not be written|not enough space"),
        ("/dev/null", "suffix"),
    ):
        with pytest.raises(ApplyError, match=why):
            write(identity(model), source if out != "/proc/out.pth" else random_state(model), out, model)
    assert source.reads == 0
    with pytest.raises(ApplyError, match="known are pth, safetensors"):
        write(identity(model), source, tmp_path / "x.pth", model, fmt="onnx")


def test_fmt_overrules_the_suffix(tmp_path):
    model, out = nn.Linear(2, 2), tmp_path / "weights.data"
    write(identity(model), random_state(model), out, model, fmt="safetensors")
    assert set(load_file(out)) == {"weight", "bias"}


def test_a_full_disk_is_known_beforehand(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(ApplyError, match=r"not enough space .* needs 1.0 MB, 0.0 MB are free"):
        write(identity(nn.Linear(2, 2)), random_state(nn.Linear(2, 2)), tmp_path / "o.pth", nn.Linear(2, 2))
    assert left(tmp_path) == []


def test_links_and_modes_are_kept(tmp_path):
    model, real, link = nn.Linear(2, 2), tmp_path / "real.pth", tmp_path / "link.pth"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    write(identity(model), random_state(model), link, model)
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert set(plain(real)) == {"weight", "bias"}
    mask = os.umask(0o022)
    os.umask(mask)
    for name in ("new.pth", "new.safetensors"):
        write(identity(model), random_state(model), tmp_path / name, model)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_input_may_be_replaced_and_the_receipt_says_so(tmp_path):
    from ckptdoctor.formats import open_checkpoint
    from ckptdoctor.formats.tensors import TensorReader

    model, path = nn.Linear(2, 2), tmp_path / "model.pth"
    state = random_state(model)
    torch.save({f"module.{k}": v for k, v in state.items()}, path)
    archive = open_checkpoint(path)
    plan = Plan({k: load(k, f"module.{k}") for k in state})
    reader = TensorReader(archive, archive.state_dicts[0])
    receipt = write(plan, reader, path, model, source=str(path))
    assert receipt.notes and torch.equal(plain(path)["weight"], state["weight"])
    assert left(tmp_path) == ["model.pth"]


def test_two_writers_leave_one_whole_file(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    model, out = nn.Linear(200, 200), tmp_path / "out.pth"
    states = [{k: torch.full_like(v, float(n)) for k, v in model.state_dict().items()} for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda state: write(identity(model), state, out, model), states * 3))
    found = plain(out)
    assert len(torch.cat([v.flatten() for v in found.values()]).unique()) == 1
    assert left(tmp_path) == ["out.pth"]


BOUNDARY = """
    import os, sys
    from torch import nn
    from ckptdoctor.targets.module import snapshot
    from ckptdoctor.loading import apply_to_file
    from tests.apply.fakes import identity

    out, die_at, seen = sys.argv[1], int(sys.argv[2]), 0
    def step(frame, event, arg):
        # Die at the n-th line that runs in the writers: before, between and after every call of theirs.
        global seen
        if "ckptdoctor/writers/" not in frame.f_code.co_filename.replace(os.sep, "/"):
            return None
        if event == "line":
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), 9)
        return step
    model = nn.Linear(2, 2)
    sys.settrace(step)
    for n in range(1, 10**6) if die_at < 0 else [die_at]:
        if die_at < 0:
            pid = os.fork()
            if pid:
                status = os.waitpid(pid, 0)[1]
                left = [f for f in os.listdir(".") if f.startswith(".out") and f.endswith(".pth")]
                for f in left:
                    os.unlink(f)
                now = open(out, "rb").read()
                new = now != b"the old file"
                print(n, status, "new" if new else "old", len(left), flush=True)
                if new:
                    import torch
                    assert set(torch.load(out, weights_only=True)) == {"weight", "bias"}
                    open(out, "wb").write(b"the old file")
                if status == 0:
                    break
                continue
            die_at = n
        apply_to_file(identity(model), dict(model.state_dict()).__getitem__, out, snapshot(model))
        os._exit(0)
"""


def test_killed_at_any_line_of_the_writers_the_file_is_the_old_or_the_new_one(tmp_path):
    (tmp_path / "out.pth").write_bytes(b"the old file")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOUNDARY), "out.pth", "-1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    killed = [row for row in rows if row[1] == "9"]
    assert len(killed) > 60 and rows[-1][1:3] == ["0", "new"]
    states = [row[2] for row in killed]
    assert {"old", "new"} == set(states), "killed before and after the rename"
    assert states == sorted(states, key=["old", "new"].index), "once it is there it stays"
    assert max(int(row[3]) for row in rows) == 1, "at most the one temporary file is left"


SLOW = """
    import sys, time, torch
    from torch import nn
    import ckptdoctor.writers as writers
    from ckptdoctor.targets.module import snapshot
    from ckptdoctor.loading import apply_to_file
    from tests.apply.fakes import identity
    save = writers.WRITERS["pth"][1]
    def slow(*args):
        save(*args)
        print("writing", flush=True)
        time.sleep(60)
    writers.WRITERS["pth"] = ((".pth",), slow)
    model = nn.Linear(2, 2)
    apply_to_file(identity(model), dict(model.state_dict()).__getitem__, sys.argv[1], snapshot(model))
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name
)
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_a_killed_writer_leaves_the_old_file_or_none(tmp_path, number, old):
    out = tmp_path / "out.pth"
    if old:
        out.write_bytes(old)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout.readline() == b"writing\n"
    time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(20) != 0
    assert (out.read_bytes() if old else out.exists()) == (old or False)
    if number != signal.SIGKILL:
        assert left(tmp_path) == ([out.name] if old else [])
