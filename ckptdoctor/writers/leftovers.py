"""Names of unfinished files, and removing those whose writer is gone.

A process that is killed (or a machine that stops) cannot remove its unfinished file. Its name says who
wrote it, so that the next run can tell a leftover from a file that another process is writing right now.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_OWNER = r"\.[0-9a-f]{12}-(?P<place>[0-9a-f]{8})-(?P<process>\d+)\.partial(\..*)?"
_SHARD = r"-\d{5}-of-\d{5}"


def unfinished(final: Path) -> Path:
    """A new name beside ``final``, hidden, with ``.partial`` in it and the writing process's number."""
    owner = f"{secrets.token_hex(6)}-{_place()}-{os.getpid()}"
    return final.with_name(f".{final.stem[:80]}.{owner}.partial{final.suffix}")


def is_unfinished(name: str) -> bool:
    """Whether a file of that name is one that was being written; nobody should read it."""
    return re.fullmatch(r"\..*" + _OWNER, name, re.DOTALL) is not None


def sweep(final: Path) -> None:
    """Remove unfinished files for ``final``, and for shards of it, whose process ended without removing them.

    Files of living processes, of other machines and of other containers stay.
    """
    stem, suffix = re.escape(final.stem[:80]), re.escape(final.suffix)
    for path, alive in _unfinished(final.parent, rf"\.{stem}({_SHARD}|{suffix}\.index)?"):
        if not alive:
            _remove(path)


def withdraw_shards(out: Path, index: Path) -> None:
    """Remove shards that a dead process had already put in place when it ended before their index was.

    Its unfinished index says which they are. Those that are newer than it are somebody else's.
    """
    found = list(_unfinished(index.parent, rf"\.{re.escape(index.stem[:80])}"))
    if index.exists() or any(alive for _, alive in found):
        return
    name = re.compile(re.escape(out.stem) + _SHARD + re.escape(out.suffix))
    for journal, _ in found:
        with suppress(OSError, ValueError, KeyError, AttributeError):
            written = journal.stat().st_mtime_ns
            for shard in set(json.loads(journal.read_text(encoding="utf-8"))["weight_map"].values()):
                path = out.with_name(shard)
                if name.fullmatch(shard) and path.is_file() and path.stat().st_mtime_ns <= written:
                    path.unlink()


def _unfinished(folder: Path, name: str) -> Iterator[tuple[Path, bool]]:
    """Unfinished files of this machine whose names begin so, and whether their process lives."""
    pattern = re.compile(name + _OWNER, re.DOTALL)
    with suppress(OSError):
        for entry in os.listdir(folder):
            found = pattern.fullmatch(entry)
            if found and found["place"] == _place():
                yield folder / entry, _alive(int(found["process"]))


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's
    return True


@cache
def _place() -> str:
    """Where process numbers mean the same: machine, and container on it."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]
