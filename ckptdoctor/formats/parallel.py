"""A few threads for work that releases the GIL: reading and checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

MOST = 4  # more readers of one disk or of one memory bus gain nothing
WORTHWHILE = 8 << 20  # bytes; below, starting threads costs more than it gains


def in_threads(work: Callable[[A], B], items: Sequence[A], nbytes: int) -> Iterable[B]:
    """``map(work, items)``, several at a time; the first error ends it. ``nbytes``: size of the work."""
    count = min(MOST, os.cpu_count() or 1, len(items))
    if count < 2 or nbytes < WORTHWHILE:
        return map(work, items)
    return _threaded(work, items, count)


def _threaded(work: Callable[[A], B], items: Sequence[A], count: int) -> Iterable[B]:
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(count, thread_name_prefix="ckptdoctor")
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for a chunk or two, not for all
