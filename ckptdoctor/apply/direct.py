"""Which tensors of a live model may be written as memory, and which by the model's own code.

Nearly all modules load their tensors as ``nn.Module`` does: copy each value into its parameter. For those
the copy is made here, once everything is proved. What has code of its own (an overridden
``_load_from_state_dict``, hooks, extra state) or memory that a plain copy could not serve is called with
its own keys, and what it did can be undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
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
                for table in (part._parameters, part._buffers):
                    yield from (t for t in table.values() if t is not None)


def places_of(model: nn.Module, modules: Sequence[nn.Module], state: Mapping[str, Any]) -> Places:
    """Tell the keys of ``state`` (``model.state_dict()`` with the model's own objects) apart.

    ``modules`` are all of the model's.
    """
    from torch import nn

    whole = Places(own={"": model}, keys={"": list(state)})
    if type(model).load_state_dict is not nn.Module.load_state_dict or "load_state_dict" in vars(model):
        return whole
    memory = {id(module): list(_slots(module)) for module in modules}
    shared = _sharing(memory.values())
    own_code: dict[type, bool] = {}
    found = Places()
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        dot = f"{path}." if path else ""
        kind = type(module)
        if kind not in own_code:
            own_code[kind] = _class_has_own_code(kind)
        slots = memory.get(id(module)) or list(_slots(module))
        if own_code[kind] or _has_own_code(module) or any(id(t) in shared or _awkward(t) for _, t in slots):
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


def _slots(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None:
                yield name, tensor


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


def _awkward(tensor: Tensor) -> bool:
    """Whether copying into it is more than writing plain memory of the CPU (or giving it memory, on meta)."""
    plain, strided = _plain_kinds()
    return (
        type(tensor) not in plain
        or not (tensor.is_cpu or tensor.is_meta)
        or tensor.layout != strided
        or tensor.is_quantized
        or tensor.is_inference()
        or tensor.is_conj()
        or tensor.is_neg()
        or (not tensor.is_contiguous() and _overlaps_itself(tensor))
    )


@cache
def _plain_kinds() -> tuple[frozenset[type], torch.layout]:
    import torch
    from torch import nn

    return frozenset((torch.Tensor, nn.Parameter, getattr(nn, "Buffer", nn.Parameter))), torch.strided


def _overlaps_itself(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return False
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return span < tensor.numel() or 0 in tensor.stride()


def _sharing(slots: Iterable[Iterable[tuple[str, Tensor]]]) -> set[int]:
    """Ids of tensors that see the memory of another one in another way: writing one changes the other."""
    seen: dict[int, Tensor] = {}
    bad: set[int] = set()
    for _, tensor in chain.from_iterable(slots):
        try:
            memory = tensor.untyped_storage()._cdata
        except (NotImplementedError, RuntimeError, AttributeError):
            continue  # no plain memory: awkward anyway
        first = seen.setdefault(memory, tensor)
        if first is not tensor and not tensor.is_meta:
            bad |= {id(first), id(tensor)}
    return bad
