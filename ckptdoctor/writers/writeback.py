"""Bytes go to the disk while the rest of their file is copied, so that the fsync at the end finds little.

Python has no ``sync_file_range(2)``; it is called in the C library. What it cannot do, or what goes wrong on
the disk, is the fsync's to do and to report (errors of a file are kept for it, see fsync(2)).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

WRITE = 2  # SYNC_FILE_RANGE_WRITE: start, and do not wait


def begin(descriptor: int, offset: int, nbytes: int) -> None:
    """Start to write these bytes to the disk. It does nothing but on Linux."""
    call = _sync_file_range()
    if call is not None:
        call(descriptor, offset, nbytes, WRITE)


@cache
def _sync_file_range() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    found: Callable[..., int] = call
    return found
