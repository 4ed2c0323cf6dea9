"""A few threads for work that releases the GIL: reading, writing and checksums."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

MOST = 4  # more readers of one disk or of one memory bus gain nothing
WORTHWHILE = 8 << 20  # bytes; below, starting threads costs more than it gains


def in_threads(
    work: Callable[[A], B], items: Sequence[A], nbytes: int, stop: threading.Event | None = None
) -> Iterable[B]:
    """``map(work, items)``, several at a time; the first error ends it and sets ``stop``.

    ``nbytes`` is the size of the work.
    """
    if len(items) < 2 or nbytes < WORTHWHILE:
        return map(work, items)
    count = min(MOST, os.cpu_count() or 1, len(items))
    if count < 2:
        return map(work, items)
    return _threaded(work, items, count, stop)


def together(items: Iterable[A], size: Callable[[A], int], least: int) -> Iterator[list[A]]:
    """Items that follow each other, in lists of at least that size; one is too little for a thread."""
    part: list[A] = []
    total = 0
    for item in items:
        part.append(item)
        total += size(item)
        if total >= least:
            yield part
            part, total = [], 0
    if part:
        yield part


def _threaded(
    work: Callable[[A], B], items: Sequence[A], count: int, stop: threading.Event | None
) -> Iterable[B]:
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(count, thread_name_prefix="ckptdoctor")
    try:
        yield from pool.map(work, items)
    except BaseException:
        if stop is not None:
            stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
