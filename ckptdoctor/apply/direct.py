"""Which tensors of a live model may be written as memory, and which by the model's own code.

Nearly all modules load their tensors as ``nn.Module`` does: copy each value into its parameter. For those
the copy is made here, once everything is proved. What has code of its own (an overridden
``_load_from_state_dict``, hooks, extra state) or memory that a plain copy could not serve is called with
its own keys, and what it did can be undone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from ckptdoctor.targets.survey import Columns, Look, Survey, columns_of, plain_types, slots_in

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Places:
    """The model as places to write to; every key of its state dict is in one of the two."""

    direct: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, nn.Module] = field(default_factory=dict)  # path -> module with code of its own
    keys: dict[str, list[str]] = field(default_factory=dict)  # path -> its keys, whole

    def owned_tensors(self) -> Iterator[Tensor]:
        """All tensors that code of the model may write to."""
        for module in self.own.values():
            for part in module.modules():
                yield from (tensor for _, tensor in slots_in(part))


def places_in(found: Survey) -> Places:
    """The model's places; usually every tensor is plain memory that no code has a part in loading."""
    if not found.plain:
        return places_of(found.model, found.modules, found.state)
    bad = _no_memory(found.slots, found.columns)
    if found.loads and not bad:
        return Places(direct=dict(found.tensors))
    return places_of(found.model, found.modules, found.state, bad)


def places_of(
    model: nn.Module,
    modules: Sequence[nn.Module],
    state: Mapping[str, Any],
    bad: Collection[int] | None = None,
) -> Places:
    """Tell the keys of ``state`` (``model.state_dict()`` with the model's own objects) apart.

    ``modules`` are all of the model's, ``bad`` the ids of their tensors that no plain copy could serve.
    """
    from torch import nn

    whole = Places(own={"": model}, keys={"": list(state)})
    if type(model).load_state_dict is not nn.Module.load_state_dict or "load_state_dict" in vars(model):
        return whole
    if bad is None:
        tensors = [tensor for module in modules for _, tensor in slots_in(module)]
        bad = _no_memory(tensors, columns_of(tensors))
    own_code: dict[type, bool] = {}
    found = Places()
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        dot = f"{path}." if path else ""
        kind = type(module)
        if kind not in own_code:
            own_code[kind] = _class_has_own_code(kind)
        slots = list(slots_in(module))
        if own_code[kind] or _has_own_code(module) or (bad and any(id(t) in bad for _, t in slots)):
            found.own[path] = module
            continue
        for name, tensor in slots:
            found.direct[dot + name] = tensor
        for name, child in module._modules.items():
            if child is not None:
                stack.append((dot + name, child))
    return found if _divide(found, state) else whole


def _divide(found: Places, state: Mapping[str, Any]) -> bool:
    """Give each key of ``state`` to its place; False when a key belongs to none (a hook made it up)."""
    direct = {}
    for key, value in state.items():
        if found.direct.get(key) is value:
            direct[key] = found.direct[key]
            continue
        path = key.rpartition(".")[0]
        while path not in found.own and path:
            path = path.rpartition(".")[0]
        if path not in found.own:
            return False
        found.keys.setdefault(path, []).append(key)
    found.direct = direct
    return True


_OWN = frozenset(("_load_from_state_dict", "state_dict"))


def _class_has_own_code(kind: type[nn.Module]) -> bool:
    import torch
    from torch import nn

    return (
        kind._load_from_state_dict is not nn.Module._load_from_state_dict
        or kind.get_extra_state is not nn.Module.get_extra_state
        or kind.state_dict is not nn.Module.state_dict
        or kind._save_to_state_dict is not nn.Module._save_to_state_dict
        or issubclass(kind, torch.jit.ScriptModule)
    )


def _has_own_code(module: nn.Module) -> bool:
    """Besides that of its class."""
    return not _OWN.isdisjoint(vars(module)) or bool(
        getattr(module, "_load_state_dict_pre_hooks", ())
        or getattr(module, "_load_state_dict_post_hooks", ())
        or getattr(module, "_state_dict_hooks", ())
    )


def _no_memory(tensors: Sequence[Tensor], columns: Columns) -> set[int]:
    """Ids of tensors into which copying is more than writing plain memory that is theirs alone."""
    awkward = {id(look) for look in columns.few if _awkward(look)}
    looked = zip(tensors, columns.looks, strict=True) if awkward else ()
    bad = {id(tensor) for tensor, look in looked if id(look) in awkward}
    return bad | _sharing(tensors, columns) if columns.shared else bad


def _awkward(look: Look) -> bool:
    """Whether copying into it is more than writing plain memory of the CPU (or giving it memory, on meta)."""
    import torch

    return (
        look.type not in plain_types()
        or look.device.type not in ("cpu", "meta")
        or look.layout != torch.strided
        or look.quantized
        or look.inference
        or look.flagged
        or (look.strides is not None and _overlaps_itself(look.shape, look.strides))
    )


def _overlaps_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    numel = prod(shape)
    if numel == 0:
        return False
    span = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    return span < numel or 0 in strides


def _sharing(tensors: Sequence[Tensor], columns: Columns) -> set[int]:
    """Ids of tensors that see the memory of another one in another way: writing one changes the other."""
    seen: dict[int, Tensor] = {}
    bad: set[int] = set()
    for tensor, memory in zip(tensors, columns.memories, strict=True):
        first = seen.setdefault(memory, tensor)
        if first is not tensor and not tensor.is_meta:
            bad |= {id(first), id(tensor)}
    return bad
