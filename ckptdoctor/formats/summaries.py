"""What else is in a file, in short words: numbers, optimizers, configurations, custom objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from ckptdoctor.formats.inert import DtypeName, Inert, StorageRecord, TensorRecord
from ckptdoctor.formats.words import LONGEST, listing, plural, show

SHOWN = 6


def words(value: Any) -> str:
    """One short line for any value of a file. Never longer than about 160 characters."""
    if isinstance(value, TensorRecord):
        return tensor_words(value)
    if value is None or isinstance(value, bool | float | complex):
        return f"{type(value).__name__} {value}" if value is not None else "None"
    if isinstance(value, int):
        return f"int {value}" if value.bit_length() < 200 else f"int of {value.bit_length()} bits"
    if isinstance(value, str):
        return f"str {show(value, LONGEST)!r}" if value.isprintable() else f"str '{show(value, LONGEST)}'"
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return f"dict of {len(value)}" + _names(value)
    if isinstance(value, list | tuple | set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, Inert):
        return _object(value)
    if isinstance(value, DtypeName):
        return f"torch.{value.name}"
    if isinstance(value, StorageRecord):
        return f"a bare storage of {plural(value.numel, 'element')}"
    return _class(value)


def tensor_words(record: TensorRecord) -> str:
    """Shape only where it can be trusted to be short."""
    size = record.size
    if isinstance(size, tuple) and len(size) < 20 and all(type(n) is int and 0 <= n < 2**62 for n in size):
        return f"tensor {list(size)}"
    return "tensor"


def _class(value: Any) -> str:
    if isinstance(value, type) and issubclass(value, Inert):
        return f"the class {show(f'{value.module}.{value.name}', LONGEST)}"
    return "something of torch's own"


def _names(names: Iterable[Any]) -> str:
    """The first keys of a mapping, those that are words."""
    first = [str(n) for n in islice(names, SHOWN + 1) if isinstance(n, str | int) and not isinstance(n, bool)]
    if not first:
        return ""
    return (
        ": " + listing(first[:SHOWN], SHOWN)[:LONGEST].rstrip(", ") + (", ..." if len(first) > SHOWN else "")
    )


def _object(value: Inert) -> str:
    name = show(value.what, LONGEST)
    if value.module.startswith("pathlib") and all(isinstance(a, str) for a in value.args):
        return f"{name} {show('/'.join(value.args), LONGEST)}"
    if value.what == "_codecs.encode" and value.args and isinstance(value.args[0], str):
        return f"{len(value.args[0])} bytes"  # how protocols 0 to 2 write them
    attributes = value.attributes()
    if attributes:
        return f"{name} with " + plural(len(attributes), "attribute") + _names(attributes)
    if value.pairs:
        return f"{name} of {len(value.pairs)}" + _names(k for k, _ in value.pairs[: SHOWN + 1])
    if value.items:
        return f"{name} of {len(value.items)}"
    simple = [a for a in value.args if isinstance(a, str | int | float)]
    if value.args and len(simple) == len(value.args) <= 4:
        return f"{name}({', '.join(show(a, 40) for a in simple if not _huge(a))})"
    return name


def _huge(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 200


def is_optimizer(node: Mapping[Any, Any]) -> bool:
    """``torch.optim.Optimizer.state_dict()``, or the attributes of a pickled optimizer."""
    groups, state = node.get("param_groups"), node.get("state")
    return isinstance(groups, list) and (isinstance(state, dict) or hasattr(state, "pairs"))


def optimizer_words(node: Mapping[Any, Any]) -> str:
    """``"optimizer: 2 groups, 10 parameters with exp_avg, exp_avg_sq, step"``."""
    groups = [g for g in node["param_groups"] if isinstance(g, dict)]
    count = sum(len(g["params"]) for g in groups if isinstance(g.get("params"), list | tuple))
    state = node["state"] if isinstance(node["state"], dict) else dict(node["state"].pairs)
    slots: dict[str, None] = {}
    for entry in islice(state.values(), 1000):
        if isinstance(entry, dict):
            slots.update((s, None) for s in entry if isinstance(s, str))
    text = f"optimizer: {plural(len(groups), 'group')}, {plural(count, 'parameter')}"
    return text + (f" with {listing(sorted(slots), SHOWN)}" if slots else ", no state")
