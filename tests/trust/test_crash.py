"""Killed, starved, raced: the old file stays or the new one is complete, and the next run cleans up.

Where a process dies is decided from outside of the code that writes: the kernel's file size limit stops it
at a byte, patched functions of ``os`` at a call, the parent at a moment.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptdoctor
from ckptdoctor.errors import ApplyError, CkptDoctorError
from ckptdoctor.testing.judging import _picture
from tests.trust.crashing import finish, in_child, lay, picture, reset, settled
from tests.trust.faults import Failing, install, killing
from tests.trust.operations import OPERATIONS, Net, Operation, command, holds, prepare, values


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> Operation:
    return OPERATIONS[request.param]


@pytest.fixture
def folder(tmp_path: Path, operation: Operation) -> Path:
    """The inputs, and an old file where one may be replaced; all modules are imported."""
    place = tmp_path / "place"
    place.mkdir()
    prepare(place)
    lay(place, operation.inputs())
    operation.run(place)
    for name in operation.makes:
        (place / name).unlink()
    prepare(place)
    lay(place, operation.inputs())
    if operation.out != "in.pth" and operation.replaces:
        (place / operation.out).write_bytes(b"the old file")
    return place


def test_killed_before_and_behind_every_call_that_changes_the_disk(
    folder: Path, operation: Operation
) -> None:
    before, ends, points = picture(folder), [], 0
    for number in range(1, 10_000):
        statuses = []
        for behind in (False, True):

            def run(number: int = number, behind: bool = behind) -> None:
                install(killing(number, behind))
                operation.run(folder)

            statuses.append(in_child(run))
            ends.append(settled(folder, operation, before))
            reset(folder, before, operation)
        points += sum(s == signal.SIGKILL for s in statuses)
        if not any(statuses):
            break
        assert set(statuses) <= {0, signal.SIGKILL}
    assert points >= 10, "create, write, chmod, fsync, rename, fsync of the folder"
    assert {"old", "new"} == set(ends)
    finish(folder, operation, before)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_an_error_at_every_call_that_touches_the_disk(
    folder: Path, operation: Operation, error: str, tmp_path: Path
) -> None:
    before, words, points = picture(folder), tmp_path / "words", 0
    for number in range(1, 10_000):

        def run(number: int = number) -> None:
            fault = Failing(number, getattr(errno, error))
            install(fault)
            operation.run(folder)
            print("not fired" if not fault.fired else "survived")

        status, text = in_child(run, words), words.read_text()
        assert os.WIFEXITED(status), "an error, not the end of the process"
        end = settled(folder, operation, before)
        left = [name for name in picture(folder) if ".partial" in name or name in operation.beside]
        if text.endswith("not fired\n"):
            break
        points += 1
        if status:
            assert any(name in text for name in (*before, *(n.split(".")[0] for n in operation.makes))), text
            assert os.strerror(getattr(errno, error)) in text, text
            assert "Traceback" not in text and "internal error" not in text, text
            assert end == "old" or "is written" in text, text
            # A disk that gives errors may not even let the unfinished file be removed.
            assert not left or end == "new" or error == "EIO", left
        else:  # what failed was not needed: a folder that is there, a mode, a leftover of others
            assert end == "new"
        reset(folder, before, operation)
    assert points >= 4
    reset(folder, before, operation)
    finish(folder, operation, before)


def on_a_small_disk(place: Path, size: int) -> bool:
    """A file system of so many bytes at ``place``, for this process alone; whether the system lets us."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts = 0x10000000, 0x00020000
    if not hasattr(libc, "unshare") or (libc.unshare(new_mounts) and libc.unshare(new_user | new_mounts)):
        return False
    libc.mount(b"none", b"/", None, 0x44000, None)  # private, recursively: nobody else sees the mount
    return not libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={size}".encode())


@pytest.mark.parametrize("pages", [0, 1, 2])
def test_a_disk_that_is_full(operation: Operation, folder: Path, pages: int, tmp_path: Path) -> None:
    """A real one where the system lets us mount it, else the largest size of a file."""
    inputs, words = picture(folder), tmp_path / "words"

    def run() -> None:
        room = sum(-(-len(d) // 4096) * 4096 for d in inputs.values()) + 4096 * pages
        if on_a_small_disk(folder, room):
            lay(folder, inputs)
        else:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048 * pages, 2048 * pages))
        # Others fill the disk after we have looked.
        shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)
        try:
            operation.run(folder)
        finally:
            end = settled(folder, operation, inputs)
            print(f"[{end}, {len(picture(folder)) - len(inputs)} more]")

    status = in_child(run, words)
    text = words.read_text()
    if status:
        assert "[old, 0 more]" in text, text
        assert any(os.strerror(e) in text for e in (errno.ENOSPC, errno.EFBIG)), text
        assert "make room" in text and any(n.split(".")[0] in text for n in operation.makes), text
    else:
        assert "[new" in text, text
    assert status or pages, "there was no room at all"


@pytest.mark.parametrize("how", ["killed", "full"])
def test_stopped_at_any_byte_of_the_file(folder: Path, operation: Operation, how: str) -> None:
    before = picture(folder)
    assert in_child(lambda: operation.run(folder)) == 0
    size = max((folder / name).stat().st_size for name in operation.makes)
    reset(folder, before, operation)
    places = sorted({0, 1, 64, size - 1, *range(0, size, max(1, size // 6))})

    def run(limit: int) -> None:
        # Python ignores SIGXFSZ, and a write beyond the limit is an OSError then; by default it kills.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "killed" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        operation.run(folder)

    for limit in places:
        status = in_child(lambda limit=limit: run(limit))
        assert status != 0
        assert settled(folder, operation, before) == "old"
        if how == "full":
            assert os.WIFEXITED(status), "an error, not the end of the process"
            assert picture(folder) == before
        reset(folder, before, operation)
    finish(folder, operation, before)


def test_killed_at_random_moments(folder: Path, operation: Operation) -> None:
    before, moments = picture(folder), random.Random(7)
    start = time.monotonic()
    assert in_child(lambda: operation.run(folder)) == 0
    took = time.monotonic() - start
    reset(folder, before, operation)
    for _ in range(8):

        def run(delay: float = moments.uniform(0, took)) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, delay)
            operation.run(folder)

        in_child(run)
        settled(folder, operation, before)
        reset(folder, before, operation)
    finish(folder, operation, before)


def test_a_folder_that_cannot_be_written_to(folder: Path, operation: Operation) -> None:
    before = picture(folder)
    places = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    for place in places:
        place.chmod(0o555)
    try:

        def run() -> None:
            if os.getuid() == 0:
                for parent in (folder, *folder.parents):
                    assert (
                        parent.stat().st_mode & 0o001 or parent.chmod(parent.stat().st_mode | 0o011) is None
                    )
                os.setuid(65534)
            operation.run(folder)

        assert os.WIFEXITED(in_child(run))
        assert picture(folder) == before
    finally:
        for place in places:
            place.chmod(0o755)


def test_a_file_in_use_keeps_its_bytes_for_those_who_have_it_open(folder: Path, operation: Operation) -> None:
    before = picture(folder)
    if not operation.replaces:  # several files replace nothing
        before[operation.out] = b"the old file"
        (folder / operation.out).write_bytes(b"the old file")
        assert in_child(lambda: operation.run(folder)) != 0
        assert picture(folder) == before
        return
    with (
        (folder / operation.out).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        assert in_child(lambda: operation.run(folder)) == 0
        assert view[:] == before[operation.out]
    assert settled(folder, operation, before) == "new"


def test_two_processes_at_once(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    shared = tmp_path / "shared"
    for number, place in enumerate((first, second)):
        place.mkdir()
        prepare(place, seed=number)
    shared.mkdir()
    children = []
    for place in (first, second, first, second):
        child = os.fork()
        if not child:
            try:
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, 1), os.dup2(null, 2)
                for _ in range(4):
                    plan = ckptdoctor.plan(str(place / "reference.pth"), place / "in.pth")
                    ckptdoctor.apply(plan, place / "in.pth", out=shared / "out.pth")
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0], "none removed another's file"
    assert holds(shared / "out.pth", 0) or holds(shared / "out.pth", 1)
    assert [p.name for p in shared.iterdir()] == ["out.pth"]


def test_unfinished_files_of_living_processes_and_other_machines_stay(tmp_path: Path) -> None:
    from ckptdoctor.writers.leftovers import sweep, unfinished

    final = tmp_path / "out.pth"
    mine = unfinished(final)
    other = tmp_path / mine.name.replace(mine.name.split("-")[1], "0" * 8)
    strange = tmp_path / ".out.mine.partial.pth"
    dead = tmp_path / mine.name.replace(f"-{os.getpid()}.", f"-{_dead()}.")
    for path in (mine, other, strange, dead):
        path.write_bytes(b"x")
    sweep(final)
    assert {p.name for p in tmp_path.iterdir()} == {mine.name, other.name, strange.name}


def _dead() -> int:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_an_input_that_changed_since_the_plan_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ckptdoctor.cli import main

    prepare(tmp_path)
    changes: dict[str, dict[str, torch.Tensor]] = {
        "a key more": {**values(), "more": torch.ones(1)},
        "a key less": {k: v for k, v in values().items() if k != "head.bias"},
        "another shape": {**values(), "head.bias": torch.ones(8)},
        "another dtype": {**values(), "head.bias": torch.ones(7).half()},
    }
    for name, state in changes.items():
        torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "in.pth")
        with pytest.raises(SystemExit) as stop:
            main(
                [
                    "apply",
                    str(tmp_path / "plan.toml"),
                    str(tmp_path / "in.pth"),
                    "-o",
                    str(tmp_path / "out.pth"),
                ]
            )
        assert stop.value.code in (1, 2), name
        assert "in.pth" in capfd.readouterr().err, name
        assert not (tmp_path / "out.pth").exists()
    with pytest.raises(SystemExit):
        main(["apply", str(tmp_path / "plan.toml"), str(tmp_path / "in.pth"), "-o", str(tmp_path / "in.pth")])
    assert "input file itself" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError("gone"), MemoryError(), KeyboardInterrupt(), ApplyError("x"), RecursionError()]
)
def test_auto_load_with_a_failure_at_every_tensor_leaves_the_model_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from ckptdoctor.formats.tensors import TensorReader

    prepare(tmp_path)
    real, left = TensorReader.__call__, [0]

    def failing(self: Any, key: str) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(self, key)

    monkeypatch.setattr(TensorReader, "__call__", failing)
    for count in range(1000):
        model = Net()
        before, left[0] = _picture(model), count
        try:
            ckptdoctor.auto_load(model, tmp_path / "in.pth")
        except (CkptDoctorError, type(error)):
            assert _picture(model) == before, count
            continue
        assert count >= len(values()), "every tensor was failed at"
        assert all(torch.equal(v, values()[k]) for k, v in model.state_dict().items())
        return
    raise AssertionError("never loaded")


def test_this_runs_where_processes_can_be_forked() -> None:
    assert sys.platform != "win32"


def test_a_device_or_a_pipe_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    """``-o /dev/null`` of an administrator must not put a file in its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    prepare(tmp_path)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        run = command("plan", "@reference.pth", "@in.pth", "-o", "@pipe")
        assert in_child(lambda: run(tmp_path)) == 0
        assert os.read(reader, 1 << 16).startswith(b"# ")
        assert pipe.is_fifo()
        assert {p.name for p in tmp_path.iterdir()} == {
            "pipe",
            "in.pth",
            "whole.pth",
            "reference.pth",
            "plan.toml",
        }
    finally:
        os.close(reader)


def test_the_files_of_a_process_that_ended_between_two_shards_are_withdrawn(tmp_path: Path) -> None:
    """Those of it alone: not what was there before, and not what came later."""
    from ckptdoctor.writers.leftovers import unfinished, withdraw_shards

    out, index = tmp_path / "out.safetensors", tmp_path / "out.safetensors.index.json"
    names = [f"out-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    (tmp_path / names[2]).write_bytes(b"put in place")
    (tmp_path / "other.safetensors").write_bytes(b"x")
    mine = unfinished(index)
    journal = tmp_path / mine.name.replace(f"-{os.getpid()}.", f"-{_dead()}.")
    journal.write_text(json.dumps({"weight_map": {"a": names[2], "b": names[0], "c": "other.safetensors"}}))
    (tmp_path / names[0]).write_bytes(b"somebody's, later")
    later = journal.stat().st_mtime_ns + 1_000_000_000
    os.utime(tmp_path / names[0], ns=(later, later))
    withdraw_shards(out, index)
    assert {p.name for p in tmp_path.iterdir()} == {names[0], "other.safetensors", journal.name}
