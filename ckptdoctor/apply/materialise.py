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
        pairs = _likes([tensor for _, tensor in due], [values[key] for key, _ in due])
    swap = _swapping()
    transaction.on_rollback(lambda: _restore(pairs))  # noted before it is done
    replaced: dict[int, Tensor] = {}
    with uninterrupted():  # torch exchanges class, attributes and memory one after the other
        for old, new in pairs:
            try:
                swap(old, new)
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
    tensors = [tensor for _, tensor in first.values()]
    return _likes(tensors, [memory.setdefault(_place(t), values[key]) for key, t in first.values()])


def _place(tensor: Tensor) -> tuple[object, ...]:
    """The same for two tensor objects that are views of the same memory."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())


def _likes(tensors: Sequence[Tensor], memory: Iterable[Tensor]) -> Pairs:
    """Each with a new object of the same class and with the same attributes, over that memory."""
    import torch

    make, plain = torch.Tensor._make_subclass, torch.Tensor
    pairs = []
    for tensor, data in zip(tensors, memory, strict=True):
        kind = type(tensor)
        if kind is plain:
            new = data.detach()
            new.requires_grad_(tensor.requires_grad)
        else:
            new = make(kind, data, tensor.requires_grad)  # detached
        if tensor.__dict__:
            new.__dict__.update(tensor.__dict__)
        pairs.append((tensor, new))
    return pairs


def _replace_noted(model: nn.Module, old: Tensor, new: Tensor, transaction: Transaction) -> None:
    transaction.on_rollback(lambda: _replace(model, new, old))
    _replace(model, old, new)


def _restore(pairs: Pairs) -> None:
    swap = _swapping()
    for old, new in reversed(pairs):
        if not old.is_meta:
            swap(old, new)


@cache
def _swapping() -> Swap:
    """What ``torch.utils.swap_tensors`` does. The second is ours and has the same class and attributes; where
    neither a weak reference nor a graph of torch knows of the first, only the memory differs.
    """
    import torch

    whole: Swap = torch.utils.swap_tensors
    if not hasattr(torch.Tensor, "_use_count"):  # then nobody tells
        return whole
    memory, plain = torch._C._swap_tensor_impl, plain_types()

    def swap(old: Any, new: Any) -> None:
        alone = type(old) in plain and not getweakrefcount(old) and old._use_count() == 1
        (memory if alone else whole)(old, new)

    return swap


def _replace(model: nn.Module, old: Tensor, new: Tensor) -> None:
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is old:
                    table[name] = new
