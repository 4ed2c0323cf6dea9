"""Asking the system to read a file before it is needed, while the processor has other things to do."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

STEP = 32 << 20  # bytes asked for at once; the system drops what is asked for beyond its own limits
MOST = 0.25  # of the memory that is free: more would push out what was read first


def read_ahead(paths: Iterable[str]) -> threading.Thread | None:
    """Start reading the files in the background; None where the system cannot be asked."""
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "sysconf"):
        return None
    thread = threading.Thread(target=_advise, args=(list(paths),), daemon=True, name="ckptdoctor-ahead")
    thread.start()
    return thread


def _advise(paths: list[str]) -> None:
    left = int(_free() * MOST)
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                size = min(os.fstat(file.fileno()).st_size, left)
                for at in range(0, size, STEP):
                    count = min(STEP, size - at)
                    if not _is_there(file.fileno(), at) or not _is_there(file.fileno(), at + count - 1):
                        os.posix_fadvise(file.fileno(), at, count, os.POSIX_FADV_WILLNEED)
                left -= size
        except OSError:
            return  # only advice: whoever reads the file will say what is wrong


def _is_there(descriptor: int, at: int) -> bool:
    """Whether this place of the file is in memory already; False where the system does not tell.

    To ask for what is there costs a look at every page, which whoever reads them next has to wait for.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except OSError:  # BlockingIOError: it is not; others: this file system cannot say
        return False


def _free() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
