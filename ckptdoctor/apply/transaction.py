"""All or nothing: a model's tensors as they were, and the way back to them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from ckptdoctor.ops.bits import same_bits

if TYPE_CHECKING:
    from torch import Tensor, nn


class Transaction:
    """Context manager: leaving it by any exception, KeyboardInterrupt included, restores the model.

    Restored are every parameter and buffer (values bit for bit, meta-ness, ``requires_grad``), which
    object stands in which module, and so ties. What a module's hooks did to other attributes is not known.
    ``written`` are the tensors that anything may write to before :meth:`commit`; by default all.
    """

    def __init__(self, modules: Iterable[nn.Module], written: Iterable[Tensor] | None = None) -> None:
        self._tables = [
            (table, dict(table.items())) for m in modules for table in (m._parameters, m._buffers)
        ]
        self._tensors = {id(t): t for _, entries in self._tables for t in entries.values() if t is not None}
        self._written = self._tensors.keys() if written is None else {id(t) for t in written}
        self._committed = False
        self._saved: dict[int, tuple[Tensor | None, bool]] = {}
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Transaction:
        for key, tensor in self._tensors.items():
            kept = key in self._written and not tensor.is_meta
            copy = tensor.detach().clone() if kept else None
            self._saved[key] = (copy, tensor.requires_grad)
        return self

    def on_rollback(self, undo: Callable[[], None]) -> None:
        """Register what else to undo; the last one registered is undone first."""
        self._undo.append(undo)

    def commit(self) -> None:
        """From here on there is no way back: the model keeps what was done."""
        self._committed = True

    def before(self, tensor: Tensor | None) -> Tensor | None:
        """The value that this tensor object had at the start; None when it was on meta or was not kept."""
        return self._saved.get(id(tensor), (None, False))[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None and not self._committed:
            with uninterrupted():
                self._restore()

    def _restore(self) -> None:
        import torch

        while self._undo:
            self._undo.pop()()
        for table, entries in self._tables:
            _restore_table(table, entries)
        with torch.no_grad():
            for key, tensor in self._tensors.items():
                value, requires_grad = self._saved[key]
                if value is not None and not same_bits(tensor, value):
                    tensor.copy_(value)
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)


def _restore_table(table: Any, entries: dict[str, Any]) -> None:
    if list(table.items()) == [] and not entries:
        return
    now = dict(table.items())
    if list(now) == list(entries) and all(now[name] is entries[name] for name in entries):
        return
    for name in now:
        del table[name]
    for name, tensor in entries.items():
        table[name] = tensor


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []
    old = signal.getsignal(signal.SIGINT)
    if old is None:  # a handler that is not Python's; nothing of ours will be raised
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: pending.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
        if pending and callable(old):
            old(*pending[-1])
