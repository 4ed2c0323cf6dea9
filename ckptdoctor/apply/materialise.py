"""Turning tensors on the meta device into real ones without losing ties, identity or attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ckptdoctor.apply.transaction import Transaction, uninterrupted

if TYPE_CHECKING:
    from torch import Tensor, nn


def materialise(
    model: nn.Module, live: Mapping[str, Tensor], values: Mapping[str, Tensor], transaction: Transaction
) -> None:
    """Give each meta tensor of ``live`` the value's memory; ``transaction`` learns how to undo it.

    The Python object stays the same (``torch.utils.swap_tensors``), so optimizers and every module that
    holds it see the real tensor. Where torch cannot swap, the object is replaced in all modules at once.
    """
    first: dict[int, tuple[str, Tensor]] = {}
    for key, tensor in live.items():
        if tensor.is_meta:
            first.setdefault(id(tensor), (key, tensor))
    if not first:
        return
    memory: dict[tuple[object, ...], Tensor] = {}
    with uninterrupted():  # torch exchanges class, attributes and memory one after the other
        for key, tensor in first.values():
            data = memory.setdefault(_place(tensor), values[key])
            _become(model, tensor, _like(tensor, data), transaction)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """The same for two tensor objects that are views of the same memory."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    """A new object of the same class, with the same attributes, over ``data``."""
    import torch

    if type(tensor) is torch.Tensor:
        new = data.detach()
        new.requires_grad_(tensor.requires_grad)
    else:
        new = torch.Tensor._make_subclass(type(tensor), data.detach(), tensor.requires_grad)
    new.__dict__.update(tensor.__dict__)
    return new


def _become(model: nn.Module, old: Tensor, new: Tensor, transaction: Transaction) -> None:
    transaction.on_rollback(lambda: None if old.is_meta else _swap(old, new))  # noted before it is done
    try:
        _swap(old, new)
    except RuntimeError:  # something holds a weak reference, or a view of it
        transaction.on_rollback(lambda: _replace(model, new, old))
        _replace(model, old, new)


def _swap(a: Tensor, b: Tensor) -> None:
    import torch

    swap: Callable[[Tensor, Tensor], None] = torch.utils.swap_tensors
    swap(a, b)


def _replace(model: nn.Module, old: Tensor, new: Tensor) -> None:
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is old:
                    table[name] = new
