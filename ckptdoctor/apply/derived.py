"""Buffers whose value is known without the model: counters that start at zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def derived_value(key: str, shape: tuple[int, ...]) -> Tensor | None:
    """The initial value of a well-known counter, or None.

    ``num_batches_tracked`` of torch's BatchNorm starts at int64 0 and matters only for ``momentum=None``.
    """
    import torch

    if key.rpartition(".")[2] == "num_batches_tracked" and shape == ():
        return torch.tensor(0, dtype=torch.int64)
    return None
