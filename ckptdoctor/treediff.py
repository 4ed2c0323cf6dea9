"""What differs between two trees by name: keys on one side only, other shapes, other dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ckptdoctor.trees import ParamTree


@dataclass(frozen=True)
class TreeDiff:
    """The difference of two trees; ``first`` and ``second`` are their labels.

    Falsy when there is none. Key order, devices and the kind of file do not count.
    """

    first: str
    second: str
    a: ParamTree
    b: ParamTree

    @cached_property
    def removed(self) -> tuple[str, ...]:
        """Keys of the first only."""
        return tuple(k for k in self.a.specs if k not in self.b)

    @cached_property
    def added(self) -> tuple[str, ...]:
        """Keys of the second only."""
        return tuple(k for k in self.b.specs if k not in self.a)

    @cached_property
    def reshaped(self) -> tuple[str, ...]:
        """Keys of both with different shapes."""
        return tuple(k for k in self.a.specs if k in self.b and self.a[k].shape != self.b[k].shape)

    @cached_property
    def recast(self) -> tuple[str, ...]:
        """Keys of both with different dtypes."""
        return tuple(k for k in self.a.specs if k in self.b and self.a[k].dtype != self.b[k].dtype)

    @cached_property
    def retied(self) -> tuple[tuple[str, ...], ...]:
        """Groups of keys that are one tensor on one side only."""
        a, b = ({tuple(sorted(g)) for g in tree.ties} for tree in (self.a, self.b))
        return tuple(sorted(a ^ b))

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.reshaped or self.recast or self.retied)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``format`` is the version of this schema."""
        return {
            "format": 1,
            "first": self.first,
            "second": self.second,
            "same": not self,
            "removed": list(self.removed),
            "added": list(self.added),
            "reshaped": [
                {"key": k, "first": list(self.a[k].shape), "second": list(self.b[k].shape)}
                for k in self.reshaped
            ],
            "recast": [{"key": k, "first": self.a[k].dtype, "second": self.b[k].dtype} for k in self.recast],
            "retied": [list(group) for group in self.retied],
        }
