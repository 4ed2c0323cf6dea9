"""Names of unfinished files, and removing those whose writer is gone.

A process that is killed (or a machine that stops) cannot remove its unfinished file. Its name says who
wrote it, so that the next run can tell a leftover from a file that another process is writing right now.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

_NAME = re.compile(r"^\..*\.[0-9a-f]{12}-([0-9a-f]{8})-(\d+)\.partial(\.\w+)*$", re.DOTALL)


def unfinished(final: Path) -> Path:
    """A new name beside ``final``, hidden, with ``.partial`` in it and the writing process's number."""
    owner = f"{secrets.token_hex(6)}-{_place()}-{os.getpid()}"
    return final.with_name(f".{final.stem[:80]}.{owner}.partial{final.suffix}")


def sweep(final: Path) -> None:
    """Remove unfinished files for ``final`` whose process ended here without removing them.

    Files of living processes, of other machines and of other containers stay.
    """
    head = f".{final.stem[:80]}."
    with suppress(OSError):
        for name in os.listdir(final.parent):
            found = _NAME.match(name) if name.startswith(head) else None
            if found and found[1] == _place() and not _alive(int(found[2])):
                _remove(final.with_name(name))


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
    except OSError:
        return True  # somebody else's
    return True


@cache
def _place() -> str:
    """Where process numbers mean the same: machine, and container on it."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]
