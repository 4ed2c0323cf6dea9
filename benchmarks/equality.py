"""Whether two op chains make the same tensor, decided by running both on tensors of distinct values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ckptdoctor.errors import CkptDoctorError

Shapes = tuple[tuple[int, ...], ...]


def same_ops(a: Sequence[str], b: Sequence[str], shapes: Shapes) -> bool:
    """Whether chains ``a`` and ``b`` agree on sources of these shapes.

    Equal texts agree; else both are run. A chain that cannot be read or run (``arith:...``) agrees
    with its own text only.
    """
    a, b = plain(a), plain(b)
    return a == b or _run_equal(a, b, shapes)


def plain(ops: Sequence[str]) -> tuple[str, ...]:
    """Op texts one by one, without spaces and without copies."""
    parts = [part.replace(" ", "") for op in ops for part in op.split("|")]
    return tuple(p for p in parts if p not in ("copy", ""))


@lru_cache(maxsize=10_000)
def _run_equal(a: tuple[str, ...], b: tuple[str, ...], shapes: Shapes) -> bool:
    import torch

    from ckptdoctor.ops import parse_chain

    tensors, start = [], 1
    for shape in shapes:
        count = torch.Size(shape).numel()
        tensors.append(torch.arange(start, start + count, dtype=torch.float64).reshape(shape))
        start += count
    try:
        left, right = parse_chain(a).run(tensors), parse_chain(b).run(tensors)
    except CkptDoctorError:
        return False
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-6, atol=0)
