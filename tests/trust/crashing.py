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
    return {p.name: p.read_bytes() if p.is_file() else b"" for p in folder.iterdir()}


def settled(folder: Path, operation: Operation, before: dict[str, bytes]) -> str:
    """Check the folder after an end of any kind: "old" or "new"."""
    now = picture(folder)
    for name, data in before.items():
        if name != operation.out:
            assert now[name] == data, f"{name} changed"
    left = set(now) - set(before) - {operation.out, *operation.beside}
    assert all(name.startswith(".") and ".partial" in name for name in left), left
    if now.get(operation.out) == before.get(operation.out):
        return "old"
    assert operation.complete(folder / operation.out), "neither the old file nor the new one"
    return "new"


def reset(folder: Path, before: dict[str, bytes], operation: Operation) -> None:
    """As before, but for what a killed process left."""
    left = operation.beside if not (folder / operation.out).exists() else ()
    for path in folder.iterdir():
        if path.name not in before and ".partial" not in path.name and path.name not in left:
            path.unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)


def finish(folder: Path, operation: Operation, before: dict[str, bytes]) -> None:
    """The next run succeeds, and no leftover of an earlier one stays."""
    assert in_child(lambda: operation.run(folder)) == 0
    assert settled(folder, operation, before) == "new"
    assert not [p.name for p in folder.iterdir() if ".partial" in p.name]
