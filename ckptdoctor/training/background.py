"""Writing while training goes on: one thread, in order, and no failure that nobody hears of."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_unheard: list[Future[None]] = []


class Saving:
    """A checkpoint that is being written, or is written. The interpreter waits for it before it ends."""

    def __init__(self, path: Path, future: Future[None] | None = None) -> None:
        self.path = path
        self._future = future

    @property
    def done(self) -> bool:
        """Whether it is on disk (or has failed; see :meth:`wait`)."""
        return self._future is None or self._future.done()

    def wait(self, timeout: float | None = None) -> Path:
        """Wait until it is on disk, and return its path. Raises what writing it raised."""
        if self._future is not None:
            heard(self._future)
            self._future.result(timeout)
        return self.path

    def __repr__(self) -> str:
        return f"Saving({str(self.path)!r}, {'done' if self.done else 'in progress'})"


def _forget() -> None:
    """In a forked process the thread is not there, and what it had to do is the parent's."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None
    _unheard.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def start(path: Path, write: Callable[[], None]) -> Saving:
    """Run ``write`` in the background, after all that were started before."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(1, thread_name_prefix="ckptdoctor-save")
        future = _pool.submit(write)
        _unheard.append(future)
    return Saving(path, future)


def heard(future: Future[None]) -> None:
    """Somebody waits for this one: its failure goes there."""
    with _lock:
        if future in _unheard:
            _unheard.remove(future)


def raise_unheard() -> None:
    """Raise the failure of an earlier save that nobody waited for."""
    with _lock:
        finished = [f for f in _unheard if f.done()]
        for future in finished:
            _unheard.remove(future)
    for future in finished:
        future.result()
