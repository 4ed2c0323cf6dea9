"""Turning tensors on the meta device into real ones without losing ties, identity or attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import getweakrefcount

from ckptdoctor.apply.transaction import Transaction, uninterrupted
from ckptdoctor.targets.survey import Survey, plain_types

if TYPE_CHECKING:
    from torch import Tensor, nn

Swap = Callable[[Any, Any], None]
Pairs = Sequence[tuple["Tensor", "Tensor"]]  # a tensor of the model, and what it becomes


def materialise(found: Survey, values: Mapping[str, Tensor], transaction: Transaction) -> dict[int, Tensor]:
    """Give each meta tensor of the state dict the value's memory; ``transaction`` learns how to undo it.

    The Python object stays the same (``torch.utils.swap_tensors``), so optimizers and every module that
    holds it see the real tensor. Where torch cannot swap, the object is replaced in all modules at once;
    returned are those objects, by the id of what they replace.
    """
    if not any(look.device.type == "meta" for look in found.columns.few):
        return {}
    due = [(key, tensor) for key, tensor in found.tensors.items() if tensor.is_meta]
    if found.columns.shared:
        pairs = _shared(due, values)
    else:
        pairs = [(tensor, _like(tensor, values[key])) for key, tensor in due]
    transaction.on_rollback(lambda: _restore(pairs))  # noted before it is done
    replaced: dict[int, Tensor] = {}
    with uninterrupted():  # torch exchanges class, attributes and memory one after the other
        for old, new in pairs:
            try:
                _swap(old, new)
            except RuntimeError:  # something holds a weak reference, or a view of it
                _replace_noted(found.model, old, new, transaction)
                replaced[id(old)] = new
    return replaced


def _shared(due: Iterable[tuple[str, Tensor]], values: Mapping[str, Tensor]) -> Pairs:
    """Each tensor once; objects that are views of one memory get one memory."""
    first: dict[int, tuple[str, Tensor]] = {}
    for key, tensor in due:
        first.setdefault(id(tensor), (key, tensor))
    memory: dict[tuple[object, ...], Tensor] = {}
    return [
        (tensor, _like(tensor, memory.setdefault(_place(tensor), values[key])))
        for key, tensor in first.values()
    ]


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
        new = torch.Tensor._make_subclass(type(tensor), data, tensor.requires_grad)  # detached
    if tensor.__dict__:
        new.__dict__.update(tensor.__dict__)
    return new


def _replace_noted(model: nn.Module, old: Tensor, new: Tensor, transaction: Transaction) -> None:
    transaction.on_rollback(lambda: _replace(model, new, old))
    _replace(model, old, new)


def _restore(pairs: Pairs) -> None:
    for old, new in reversed(pairs):
        if not old.is_meta:
            _swap(old, new)


def _swap(old: Any, new: Any) -> None:
    """What ``torch.utils.swap_tensors`` does. ``new`` is ours and has the same class and attributes; where
    neither a weak reference nor a graph of torch knows of ``old``, only the memory differs.
    """
    memory, all_of_it = _swaps()
    if memory and type(old) in plain_types() and not getweakrefcount(old) and old._use_count() == 1:
        memory(old, new)
    else:
        all_of_it(old, new)


@cache
def _swaps() -> tuple[Swap | None, Swap]:
    """How torch exchanges the memory of two tensors, where it lets us check that it may; and all of them."""
    import torch

    counts = hasattr(torch.Tensor, "_use_count")
    return torch._C._swap_tensor_impl if counts else None, torch.utils.swap_tensors


def _replace(model: nn.Module, old: Tensor, new: Tensor) -> None:
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is old:
                    table[name] = new
