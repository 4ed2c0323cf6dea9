"""A digest of names and shapes: what a state dict shows in whatever dtype it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from ckptdoctor.trees import TensorSpec


def shape_mark(rows: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """The digest. Generated programs (`plan.export`) compute the same one, so its text never changes."""
    text = "\n".join(f"{key!a} {list(shape)}" for key, shape in sorted(rows))
    return hashlib.sha256(text.encode()).hexdigest()


def tree_mark(specs: Mapping[str, TensorSpec]) -> str:
    """:func:`shape_mark` of a tree's specs."""
    return shape_mark((key, spec.shape) for key, spec in specs.items())
