"""The state dict of a whole pickled ``nn.Module``, gathered from stand-ins; its class is not needed.

As ``torch.nn.Module.state_dict``: a module's parameters, then its persistent buffers, then its
children, each in registration order. What a class computes in hooks of its own cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ckptdoctor.formats.inert import Inert, TensorRecord
from ckptdoctor.formats.source import corrupt
from ckptdoctor.trees import Kind

MOST_KEYS = 1_000_000  # a module that contains itself twice at every level has no end
DEEPEST = 500

Slots = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]  # script class -> parameters, buffers


class Entry(NamedTuple):
    """One tensor of a harvested module."""

    key: str
    record: TensorRecord
    kind: Kind


def is_module(node: Any) -> bool:
    """Does this stand-in look like an ``nn.Module`` (or a scripted one)?"""
    if not isinstance(node, Inert):
        return False
    if node.module.startswith("__torch__"):
        return bool(node.attributes())
    attributes = node.attributes()
    return isinstance(attributes.get("_modules"), dict) and isinstance(attributes.get("_parameters"), dict)


def harvest(module: Inert, path: str, slots: Slots | None = None) -> Iterator[Entry]:
    """Every parameter and persistent buffer below `module`, in the order of its ``state_dict()``.

    Raises CorruptCheckpointError for a module that contains itself.
    """
    stack: list[tuple[str, Inert, int]] = [("", module, 0)]
    keys = 0
    while stack:
        prefix, node, depth = stack.pop()
        keys += 1
        if depth > DEEPEST or keys > MOST_KEYS:
            raise corrupt(path, "a pickled module contains itself, or is nested without end")
        children: list[tuple[str, Inert, int]] = []
        for name, value, kind in _slots(node, slots or {}):
            if isinstance(value, TensorRecord):
                keys += 1
                yield Entry(prefix + name, value, kind)
            elif is_module(value):
                children.append((f"{prefix}{name}.", value, depth + 1))
        stack.extend(reversed(children))


def _slots(node: Inert, scripted: Slots) -> Iterator[tuple[str, Any, Kind]]:
    if node.module.startswith("__torch__"):
        yield from _script_slots(node, scripted)
        return
    attributes = node.attributes()
    yield from _named(attributes.get("_parameters"), "param")
    hidden = attributes.get("_non_persistent_buffers_set")
    names = set(hidden_names(hidden))
    for name, value, kind in _named(attributes.get("_buffers"), "buffer"):
        if name not in names:
            yield name, value, kind
    for name, value, _ in _named(attributes.get("_modules"), ""):
        if is_module(value):
            yield name, value, ""


def _named(values: Any, kind: Kind) -> Iterator[tuple[str, Any, Kind]]:
    if isinstance(values, dict):
        for name, value in values.items():
            if isinstance(name, str):
                yield name, value, kind


def hidden_names(value: Any) -> list[str]:
    """The names in a set, however the protocol wrote it (a real one, or ``set([...])``)."""
    if isinstance(value, Inert):
        value = [*value.items, *(value.args[0] if value.args and isinstance(value.args[0], list) else ())]
    return [n for n in value if isinstance(n, str)] if isinstance(value, set | frozenset | list) else []


def _script_slots(node: Inert, scripted: Slots) -> Iterator[tuple[str, Any, Kind]]:
    """Attributes of a scripted module; its code says which are parameters and which are buffers."""
    attributes = {k: v for k, v in node.attributes().items() if isinstance(k, str)}
    known = scripted.get(node.what)
    parameters, buffers = known if known else ((), tuple(attributes))
    for names, kind in ((parameters, "param"), (buffers, "buffer")):
        for name in names:
            if isinstance(attributes.get(name), TensorRecord):
                yield name, attributes[name], kind if known else ""  # type: ignore[misc]  # it is a Kind
    for name, value in attributes.items():
        if isinstance(value, Inert):
            yield name, value, ""
