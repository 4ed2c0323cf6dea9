"""A run of an operation in a process that may die, and what must hold of the folder afterwards."""

from __future__ import annotations

import os
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from tests.trust.operations import Operation


def in_child(function: Callable[[], None], words: Path | None = None) -> int:
    """The wait status of a fork that runs it: 0, an exit code, or the signal that ended it.

    ``words`` takes what it says, which is opened before anything can fail.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork of a process with threads; the child uses none
        child = os.fork()
    if not child:
        code = 1
        try:
            said = os.open(words or os.devnull, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1), os.dup2(said, 2)
            sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            function()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def picture(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, by its path from there."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lay(folder: Path, files: dict[str, bytes]) -> None:
    """Write them."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def settled(folder: Path, operation: Operation, before: dict[str, bytes]) -> str:
    """Check the folder after an end of any kind: "old" or "new"."""
    now = picture(folder)
    gone = {name for name in operation.removes if name not in now}
    for name, data in before.items():
        if name != operation.out and name not in gone:
            assert now[name] == data, f"{name} changed"
    left = set(now) - set(before) - {operation.out, *operation.beside}
    assert all(is_unfinished(name) for name in left), left
    if now.get(operation.out) == before.get(operation.out):
        assert not gone, "removed before the new file was there"
        return "old"
    assert operation.complete(folder / operation.out), "neither the old file nor the new one"
    return "new"


def is_unfinished(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith(".") and ".partial" in last


def reset(folder: Path, before: dict[str, bytes], operation: Operation) -> None:
    """As before, but for what a killed process left."""
    now = picture(folder)
    left = operation.beside if now.get(operation.out) == before.get(operation.out) else ()
    for name in now:
        if name not in before and ".partial" not in name and name not in left:
            (folder / name).unlink()
    lay(folder, before)


def finish(folder: Path, operation: Operation, before: dict[str, bytes]) -> None:
    """The next run succeeds, and no leftover of an earlier one stays."""
    assert in_child(lambda: operation.run(folder)) == 0
    assert settled(folder, operation, before) == "new"
    now = picture(folder)
    assert not [name for name in now if ".partial" in name or name in operation.removes]
