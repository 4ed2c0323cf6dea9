"""The last part of a load: values that were proved are copied into the model's tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from ckptdoctor.errors import ApplyError, ReadError, VerifyError
from ckptdoctor.formats.parallel import in_threads, together
from ckptdoctor.ops.bits import Copy, all_copied, begun, copied, copied_bytes
from ckptdoctor.receipt import listing

if TYPE_CHECKING:
    from torch import Tensor

ATTEMPTS = 2
FEW = 64  # small tensors at a time
SHARE = 4 << 20  # bytes that one thread copies before it takes the next
MIXED = "the model holds neither its old nor its new values, build it again"


@dataclass
class Pending:
    """Values that are copied into tensors of the model once all else is done."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, key: str, tensor: Tensor, value: Tensor) -> None:
        """``value`` goes into ``tensor``."""
        self.tensors[key], self.values[key] = tensor, value

    def get(self, key: str) -> Tensor | None:
        """The value as the tensor will hold it; None when the key is not pending."""
        return self.cast(key) if key in self.values else None

    def cast(self, key: str) -> Tensor:
        """The same for a pending key."""
        value, dtype = self.values[key], self.tensors[key].dtype
        if value.dtype == dtype:
            return value
        with warnings.catch_warnings():  # complex -> real warns; verification refuses it with a reason
            warnings.simplefilter("ignore")
            return value.to(dtype)


def commit(pending: Pending, *, compare: bool, unchanged: Callable[[], None]) -> None:
    """Copy all, and compare each with its value while the cache still has it.

    Every way to fail was ruled out before: shapes, dtypes, layouts, code of the model, memory, signals. What
    was overwritten is gone, so if the impossible happens the way to a whole model is on: all is copied again,
    and only then is an interruption passed on. ``unchanged`` raises when a file that values are mapped from
    was written; that, or a tensor without its value, is a :class:`VerifyError`. It takes somebody who edits
    the file in place at this very moment.
    """
    interrupted: BaseException | None = None
    differing: list[str] = []
    for attempt in range(ATTEMPTS):
        try:
            differing = _copied(pending, compare, alone=attempt > 0)
            break
        except BaseException as error:
            interrupted = error
    else:
        raise ApplyError(f"{MIXED}: {type(interrupted).__name__}: {interrupted}") from interrupted
    if differing:
        raise VerifyError(f"{MIXED}: {listing(differing)} changed while they were loaded")
    try:
        unchanged()
    except ReadError as error:
        raise VerifyError(f"{MIXED}: {error}") from error
    if interrupted is not None and not isinstance(interrupted, Exception):
        raise interrupted


def _copied(pending: Pending, compare: bool, alone: bool) -> list[str]:
    """Copies all; the keys whose tensors do not hold their values then. ``alone``: in this thread only."""
    keys, differing = list(pending.tensors), set[str]()
    due: dict[str, Copy] = {}
    for at in range(0, len(keys), FEW):
        part = keys[at : at + FEW]
        # The same memory without autograd, whose modes are then left alone.
        memory = [pending.tensors[key].detach() for key in part]
        values = [pending.values[key] for key in part]
        if not compare:
            for tensor, value in zip(memory, values, strict=True):
                tensor.copy_(value)
        elif (same := all_copied(memory, values)) is not None:
            differing.update(key for key, arrived in zip(part, same, strict=True) if not arrived)
        else:
            differing.update(k for k, m in zip(part, memory, strict=True) if not _begun(pending, k, m, due))
    shares = [(key, share) for key, job in due.items() for share in _shares(job)]
    total = sum(job.nbytes for job in due.values())
    parts = list(together(shares, lambda one: one[1].nbytes, SHARE))
    work = map(_all, parts) if alone or _overlap(due.values()) else in_threads(_all, parts, total)
    differing.update(key for keys in work for key in keys)
    return [key for key in keys if key in differing]


def _begun(pending: Pending, key: str, memory: Tensor, due: dict[str, Copy]) -> bool:
    """Copy one, or note that it is ``due``; False where it did not arrive."""
    job = begun(memory, pending.values[key])
    if job is None:
        return copied(memory, pending.cast(key))
    due[key] = job
    return True


def _all(part: list[tuple[str, Copy]]) -> list[str]:
    return [key for key, job in part if not copied_bytes(job)]


def _shares(job: Copy) -> list[Copy]:
    """Parts of one large tensor, for several threads."""
    into, source, nbytes = job
    return [Copy(into + at, source + at, min(SHARE, nbytes - at)) for at in range(0, nbytes, SHARE)]


def _overlap(jobs: Collection[Copy]) -> bool:
    """Whether two of them write to the same memory, so that their order counts."""
    ranges = sorted((job.into, job.into + job.nbytes) for job in jobs)
    return any(end > start for (_, end), (start, _) in pairwise(ranges))
