"""Small helpers on dotted keys: nodes of the tree, children, random picks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ckptdoctor.trees import TensorSpec

T = TypeVar("T")
Path = tuple[str, ...]
Signature = frozenset[tuple[str, tuple[int, ...]]]


class NotApplicable(Exception):
    """The mutation needs something that this tree has not."""


def paths(keys: Iterable[str]) -> list[Path]:
    """Keys as tuples of segments."""
    return [tuple(k.split(".")) for k in keys]


def nodes(keys: Iterable[str]) -> list[Path]:
    """All modules (inner nodes) of the tree, in order."""
    return list({p[:d]: None for p in paths(keys) for d in range(1, len(p))})


def children(keys: Iterable[str]) -> dict[Path, list[str]]:
    """Module path -> names directly below it, in order; () is the root."""
    found: dict[Path, dict[str, None]] = {}
    for p in paths(keys):
        for d in range(len(p)):
            found.setdefault(p[:d], {})[p[d]] = None
    return {parent: list(names) for parent, names in found.items()}


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """A random one, or not applicable."""
    if not items:
        raise NotApplicable
    return rng.choice(items)


def below(keys: Iterable[str], node: Path) -> list[str]:
    """Keys under a node (or the node itself), in order; all for ()."""
    head = ".".join(node)
    return [k for k in keys if not head or k == head or k.startswith(head + ".")]


def signature(specs: Mapping[str, TensorSpec], node: Path) -> Signature:
    """What lies under a node: names relative to it, with shapes."""
    head = ".".join(node)
    return frozenset((k[len(head) :], specs[k].shape) for k in below(specs, node))


def content(specs: Mapping[str, TensorSpec], node: Path) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What lies under a node without its inner names: last segments and shapes, sorted."""
    return tuple(sorted((k.rpartition(".")[2], specs[k].shape) for k in below(specs, node)))


def twins(specs: Mapping[str, TensorSpec]) -> list[tuple[Path, list[list[str]]]]:
    """Parents with children of equal content, as (parent, groups of two or more child names)."""
    found = []
    for parent, names in children(specs).items():
        groups: dict[object, list[str]] = {}
        for name in names:
            node = (*parent, name)
            if ".".join(node) not in specs:
                groups.setdefault(content(specs, node), []).append(name)
        equal = [g for g in groups.values() if len(g) > 1]
        if equal:
            found.append((parent, equal))
    return found


def reordered(keys: Iterable[str], parent: Path, order: Sequence[str]) -> list[str]:
    """Keys with the children of ``parent`` in another order; the keys below stay one run, in order."""
    keys = list(keys)
    depth = len(parent)
    place = {name: i for i, name in enumerate(order)}
    inside = [k for k in keys if tuple(k.split("."))[:depth] == parent]
    moved = iter(sorted(inside, key=lambda k: place[k.split(".")[depth]]))
    members = set(inside)
    return [next(moved) if k in members else k for k in keys]
