"""The keys of a live model without what wrappers added to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable
from ckptdoctor.targets.survey import walk_modules
from ckptdoctor.wrappers import BY_SEGMENT

if TYPE_CHECKING:
    from torch import nn

# Classes whose child called `module` or `_module` is the wrapped network (a model may have such a child).
WRAPPING = frozenset({
    "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine",
    "GradSampleModule", "AbstractGradSampleModule", "DPDDP",
})  # fmt: skip


def unwrapped_keys(model: nn.Module, keys: Iterator[str] | list[str]) -> dict[str, str]:
    """Key of the state dict -> its name without wrappers. Raises :class:`ApplyError` if two become one."""
    wrapped = {f"{path}.{name}" if path else name for path, name in _wrapped(model)}
    names: dict[str, str] = {}
    back: dict[str, str] = {}
    for key in keys:
        name = _without(key, wrapped)
        if back.setdefault(name, key) != key:
            raise ApplyError(
                f"without wrappers `{printable(back[name])}` and `{printable(key)}` are both "
                f"`{printable(name)}`"
            )
        names[key] = name
    return names


def _wrapped(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in walk_modules(model):
        for name in module._modules:
            row = BY_SEGMENT.get(name)
            if row is not None and (row.anywhere or _wraps(module)):
                yield path, name


def _wraps(module: Any) -> bool:
    return any(cls.__name__ in WRAPPING for cls in type(module).__mro__)


def _without(key: str, wrapped: set[str]) -> str:
    path, kept = "", []
    for segment in key.split("."):
        path = f"{path}.{segment}" if path else segment
        if path not in wrapped:
            kept.append(segment)
    return ".".join(kept)
