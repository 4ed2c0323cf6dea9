"""One forward pass of a model, and its outputs as plain nested data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def forward(model: nn.Module, inputs: Any) -> Any:
    """The outputs for ``inputs``: a tensor, a tuple of arguments or a dict of keyword arguments.

    The model is in eval mode and no gradient is recorded; afterwards every module has its own training flag
    again and torch's generator its state. Inputs are copied to the model's device, outputs come back as
    tensors on the CPU in dicts (mappings, dataclasses) and tuples. Raises what the model raises.
    """
    import torch

    where = next((t.device for t in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    ready = _moved(inputs, where)
    with _evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        if isinstance(ready, dict):
            made = model(**ready)
        elif isinstance(ready, tuple):
            made = model(*ready)
        else:
            made = model(ready)
        return plain(made)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _moved(value: Any, device: torch.device) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)  # a model may write to its inputs
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value) if type(value) in (list, tuple) else value
    return value


def plain(value: Any) -> Any:
    """Nested outputs without the classes of any library; what is no data becomes its class in words."""
    import torch

    if isinstance(value, torch.Tensor):
        whole = value.detach()
        whole = whole.dequantize() if whole.is_quantized else whole
        whole = whole.to_dense() if whole.layout != torch.strided else whole
        return whole.to("cpu", copy=True).resolve_conj().resolve_neg()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"<{type(value).__name__}>"
