"""A line on stderr for what takes longer than a second, on a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 1.0  # seconds before anything is shown
EVERY = 0.1  # seconds


@contextmanager
def progress(words: str) -> Iterator[Callable[[int, int], None] | None]:
    """``tell(done, total)`` in bytes; None where nobody would see it. The line is gone at the end."""
    if not sys.stderr.isatty():
        yield None
        return
    shown: list[Any] = []
    due = time.monotonic() + PATIENCE

    def tell(done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:  # asked for every 256 KB; nobody reads that fast
            return
        due = now + EVERY
        if not shown:
            shown.append(_bar(words, total))
        shown[0].update(shown[0].task_ids[0], completed=done)

    try:
        yield tell
    finally:
        for bar in shown:
            bar.stop()


def _bar(words: str, total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(words, total=total)
    bar.start()
    return bar
