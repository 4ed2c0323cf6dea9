"""Optimizers, schedulers and scalers as they were, and the way back to them."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from ckptdoctor.apply.transaction import uninterrupted


class Undo:
    """Context manager: leaving it by any exception puts the attributes of ``objects`` back.

    Containers are copied, tensors cloned; everything else is kept by reference. Schedulers inside of
    schedulers are followed.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        self._saved: list[tuple[Any, dict[str, Any]]] = []
        self._groups: list[tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]] = []
        seen: set[int] = set()
        stack = [o for o in objects if hasattr(o, "__dict__")]
        while stack:
            thing = stack.pop()
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            own = dict(vars(thing))
            groups = own.get("param_groups")
            if isinstance(groups, list):  # schedulers and loops hold on to these very dicts
                self._groups.append((thing, groups, [dict(g) for g in groups]))
            self._saved.append((thing, {k: _copy(v) for k, v in own.items()}))
            inner = own.get("_schedulers") or own.get("schedulers") or ()
            stack.extend(s for s in inner if hasattr(s, "__dict__") and hasattr(s, "state_dict"))

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            with uninterrupted():
                self.restore()

    def restore(self) -> None:
        """Put everything back."""
        for thing, own in self._saved:
            vars(thing).clear()
            vars(thing).update(own)
        for thing, groups, contents in self._groups:
            for group, content in zip(groups, contents, strict=True):
                group.clear()
                group.update(content)
            thing.param_groups = groups


def _copy(value: Any, depth: int = 0) -> Any:
    import copy

    import torch

    if isinstance(value, torch.nn.Parameter):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if depth > 6:
        return value
    if type(value) in (list, tuple, set):
        return type(value)(_copy(v, depth + 1) for v in value)
    if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
        made = copy.copy(value)
        for key, item in value.items():
            made[key] = _copy(item, depth + 1)
        return made
    return value
