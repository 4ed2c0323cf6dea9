"""Killed, starved, raced: the old file stays or the new one is complete, and the next run cleans up.

Where a process dies is decided from outside of the code that writes: the kernel's file size limit stops it
at a byte, patched functions of ``os`` at a call, the parent at a moment.
"""

from __future__ import annotations

import mmap
import os
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptdoctor
from ckptdoctor.errors import ApplyError, CkptDoctorError
from ckptdoctor.testing.judging import _picture
from tests.trust.operations import OPERATIONS, Net, Operation, complete, prepare, values

# What changes the disk: every call of one of these is a boundary, before and behind it.
CALLS = ("open", "write", "pwrite", "fsync", "fdatasync", "replace", "rename", "link", "unlink", "remove", "chmod",
         "close", "ftruncate", "truncate", "posix_fallocate", "sendfile", "copy_file_range")  # fmt: skip


def in_child(function: Callable[[], None], *, output: bool = False) -> int:
    """The wait status of a fork that runs it: 0, an exit code, or the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork of a process with threads; the child uses none
        child = os.fork()
    if not child:
        code = 1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            if not output:
                os.dup2(null, 1), os.dup2(null, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            function()
            code = 0
        except BaseException:
            if output:
                import traceback

                traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def picture(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() if p.is_file() else b"" for p in folder.iterdir()}


def settled(folder: Path, operation: Operation, before: dict[str, bytes]) -> str:
    """Check the folder after an end of any kind: "old" or "new"."""
    now = picture(folder)
    for name, data in before.items():
        if name != operation.out:
            assert now[name] == data, f"{name} changed"
    left = set(now) - set(before) - {operation.out}
    assert all(name.startswith(".") and ".partial" in name for name in left), left
    if now.get(operation.out) == before.get(operation.out):
        return "old"
    assert complete(folder / operation.out), "neither the old file nor the new one"
    return "new"


def reset(folder: Path, before: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        if path.name not in before and ".partial" not in path.name:
            path.unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)


def finish(folder: Path, operation: Operation, before: dict[str, bytes]) -> None:
    """The next run succeeds, and no leftover of an earlier one stays."""
    assert in_child(lambda: operation.run(folder)) == 0
    assert settled(folder, operation, before) == "new"
    assert not [p.name for p in folder.iterdir() if ".partial" in p.name]


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> Operation:
    return OPERATIONS[request.param]


@pytest.fixture
def folder(tmp_path: Path, operation: Operation) -> Path:
    prepare(tmp_path)
    if operation.out != "in.pth":
        (tmp_path / operation.out).write_bytes(b"the old file")
    return tmp_path


def dying(number: int, behind: bool) -> Callable[[], list[int]]:
    """Patch ``os`` so that the process kills itself at the n-th call that changes the disk."""
    seen = [0]

    def patch() -> list[int]:
        import builtins
        import io

        for owner, names in ((os, CALLS), (builtins, ("open",)), (io, ("open",))):
            for name in names:
                if hasattr(owner, name):
                    setattr(owner, name, deadly(getattr(owner, name)))
        return seen

    def deadly(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            mine = seen[0] == number
            if mine and not behind:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    return patch


def test_killed_before_and_behind_every_call_that_changes_the_disk(
    folder: Path, operation: Operation
) -> None:
    before, ends, points = picture(folder), [], 0
    in_child(lambda: operation.run(folder))  # what is imported late is imported
    reset(folder, before)
    for number in range(1, 10_000):
        statuses = []
        for behind in (False, True):

            def run(number: int = number, behind: bool = behind) -> None:
                dying(number, behind)()
                operation.run(folder)

            statuses.append(in_child(run))
            ends.append(settled(folder, operation, before))
            reset(folder, before)
        points += sum(s == signal.SIGKILL for s in statuses)
        if not any(statuses):
            break
        assert set(statuses) <= {0, signal.SIGKILL}
    assert points > 20
    assert {"old", "new"} == set(ends)
    finish(folder, operation, before)


@pytest.mark.parametrize("how", ["killed", "full"])
def test_stopped_at_any_byte_of_the_file(folder: Path, operation: Operation, how: str) -> None:
    before = picture(folder)
    assert in_child(lambda: operation.run(folder)) == 0
    size = (folder / operation.out).stat().st_size
    reset(folder, before)
    places = sorted({0, 1, 8, 63, 64, 65, size - 1, *range(0, size, max(1, size // 12))})

    def run(limit: int) -> None:
        # Python ignores SIGXFSZ, and a write beyond the limit is an OSError then; by default it kills.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "killed" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        operation.run(folder)

    for limit in places:
        status = in_child(lambda limit=limit: run(limit))  # type: ignore[misc]
        assert status != 0
        assert settled(folder, operation, before) == "old"
        if how == "full":
            assert os.WIFEXITED(status), "an error, not the end of the process"
            assert picture(folder) == before
    finish(folder, operation, before)


def test_killed_at_random_moments(folder: Path, operation: Operation) -> None:
    before, moments = picture(folder), random.Random(7)
    start = time.monotonic()
    assert in_child(lambda: operation.run(folder)) == 0
    took = time.monotonic() - start
    reset(folder, before)
    for _ in range(8):

        def run(delay: float = moments.uniform(0, took)) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, delay)
            operation.run(folder)

        in_child(run)
        settled(folder, operation, before)
        reset(folder, before)
    finish(folder, operation, before)


def test_a_folder_that_cannot_be_written_to(folder: Path, operation: Operation) -> None:
    before = picture(folder)
    folder.chmod(0o555)
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
        folder.chmod(0o755)


def test_a_file_in_use_keeps_its_bytes_for_those_who_have_it_open(folder: Path, operation: Operation) -> None:
    before = picture(folder)
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
    assert complete(shared / "out.pth", 0) or complete(shared / "out.pth", 1)
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
