"""The optimizers, schedulers and scalers at hand: what is inside of wrappers, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def by_name(given: Any, what: str) -> dict[str, Any]:
    """One object (named ``""``), a list of them or a dict of them, by name."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {str(k): v for k, v in given.items()}
    if isinstance(given, list | tuple):
        return {"": given[0]} if len(given) == 1 else {str(i): v for i, v in enumerate(given)}
    if not hasattr(given, "load_state_dict"):
        raise ApplyError(f"{what}= is a {printable(type(given).__name__)}, which has no load_state_dict")
    return {"": given}


def paired(given: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, str] | None:
    """Name at hand -> name in the file; None where they do not fit one to one."""
    if set(given) == set(saved):
        return {name: name for name in given}
    if len(given) == 1 and len(saved) == 1:
        return dict(zip(given, saved, strict=True))
    return None


def bare_optimizer(thing: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside of what Lightning, accelerate or mmengine wrap around it."""
    import torch

    seen = 0
    while isinstance(inner := getattr(thing, "optimizer", None), torch.optim.Optimizer) and seen < 8:
        thing, seen = inner, seen + 1
    if not isinstance(thing, torch.optim.Optimizer):
        raise ApplyError(f"optimizer= is a {printable(type(thing).__name__)}, no torch.optim.Optimizer")
    return thing


def optimizer_kind(optimizer: torch.optim.Optimizer) -> str:
    """The class of torch.optim that it is (a subclass counts as its base only where nothing is changed)."""
    return type(optimizer).__name__


def keys_of(model: nn.Module) -> dict[int, str]:
    """Identity of each tensor -> its first key in the model's state dict."""
    state = model.state_dict(keep_vars=True)
    found: dict[int, str] = {}
    for key, value in state.items():
        found.setdefault(id(value), key)
    return found


def listed_params(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The optimizer's parameters as keys of the model, by group. Raises :class:`ApplyError` for others."""
    keys = keys_of(model)
    groups = []
    for group in optimizer.param_groups:
        names = [keys.get(id(p)) for p in group["params"]]
        lost = sum(n is None for n in names)
        if lost:
            raise ApplyError(
                f"the optimizer holds {lost} parameters that the model does not: it was made for another "
                "object, or before the model was replaced or moved by a copy. Make the optimizer from this "
                "model; for several modules give one that holds them all, torch.nn.ModuleDict({...})"
            )
        groups.append(tuple(n for n in names if n is not None))
    if any(p.is_meta for p in params_of(optimizer)):
        raise ApplyError(
            "the model is on the meta device, so its optimizer would lose its parameters when they get "
            "memory: build the model on a device first (model.to_empty), then the optimizer"
        )
    return tuple(groups)


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters in the optimizer's order."""
    return [p for group in optimizer.param_groups for p in group["params"]]
