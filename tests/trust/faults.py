"""A layer under every file that Python code writes: the n-th call that changes the disk kills or fails.

``os`` and ``open`` are replaced in a child process; what a program writes through ``open`` goes through a
file object that counts as well. Reads count only for errors: a process killed while it reads has done nothing.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from typing import Any

# Every call of one of these changes the disk, or may be the one that fails.
CHANGES = (
    "write", "writev", "pwrite", "pwritev", "fsync", "fdatasync", "replace", "rename", "link", "symlink", "unlink", "remove",
    "chmod", "mkdir", "rmdir", "ftruncate", "truncate", "posix_fallocate", "sendfile", "copy_file_range",
)  # fmt: skip
READS = ("read", "pread", "preadv", "readv")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Act = Callable[[str, bool], None]  # the call's name, whether it is done; may kill or raise


def killing(number: int, behind: bool) -> Act:
    """Die before or behind the n-th change."""
    seen = [0]

    def act(name: str, done: bool) -> None:
        seen[0] += done == behind and name not in READS
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


class Failing:
    """The n-th call raises; as on a full disk all later ones that write or make something, too.

    ``fired`` says whether it came to that.
    """

    def __init__(self, number: int, code: int) -> None:
        self.number, self.code, self.seen, self.fired = number, code, 0, False

    def __call__(self, name: str, done: bool) -> None:
        full = self.code == errno.ENOSPC
        if done or (full and name in (*READS, "unlink", "remove", "rmdir", "chmod")):
            return
        self.seen += 1
        if self.seen == self.number or (full and self.fired):
            self.fired = True
            raise OSError(self.code, os.strerror(self.code))


def install(act: Act) -> None:
    """For this process, from here on."""
    for name in (*CHANGES, *READS):
        if hasattr(os, name):
            setattr(os, name, _watched(name, getattr(os, name), act))
    os.open = _watched_open(os.open, act)
    watched = _opener(io.open, act)
    builtins.open = io.open = watched


def _watched(name: str, function: Any, act: Act) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        act(name, False)
        result = function(*args, **kwargs)
        act(name, True)
        return result

    return call


def _watched_open(function: Any, act: Act) -> Any:
    def call(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
        if not flags & WRITING:
            return function(path, flags, *args, **kwargs)
        act("open", False)
        result = function(path, flags, *args, **kwargs)
        act("open", True)
        return result

    return call


def _opener(function: Any, act: Act) -> Any:
    class Raw(io.FileIO):
        """Each write of it is a call that changes the disk; a full disk takes a part first."""

        def write(self, data: Any) -> int:
            try:
                act("write", False)
            except OSError:
                super().write(memoryview(data).cast("B")[: len(data) // 2])
                raise
            done = super().write(data)
            act("write", True)
            return done or 0

    def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return function(file, mode, *args, **kwargs)
        act("open", False)
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        act("open", True)
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        names = ("buffering", "encoding", "errors", "newline")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return io.TextIOWrapper(buffered, given.get("encoding"), given.get("errors"), given.get("newline"))

    return call
