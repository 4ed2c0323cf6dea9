"""Names that training code adds to keys: wrapper segments, removed on both sides before matching.

To add a wrapper, add a row. A segment is removed only where the bare tree does not own it itself
(a model may have a child called ``module``); that guard is :func:`canonical_keys`'s.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple


class Wrapper(NamedTuple):
    """One row. ``anywhere``: the segment is a wrapper at any depth; else only in front or under one."""

    segment: str
    writer: str
    anywhere: bool


WRAPPERS: tuple[Wrapper, ...] = (
    Wrapper("_orig_mod", "torch.compile", True),
    Wrapper("_fsdp_wrapped_module", "FullyShardedDataParallel", True),
    Wrapper("_checkpoint_wrapped_module", "activation checkpointing", True),
    Wrapper("_forward_module", "a Lightning strategy", True),
    Wrapper("_fpw_module", "FairScale FullyShardedDataParallel", True),
    Wrapper("module", "torch.nn.DataParallel or DistributedDataParallel", False),
    Wrapper("_module", "Opacus GradSampleModule", False),
)
BY_SEGMENT = {w.segment: w for w in WRAPPERS}
# A cheap first look: most keys carry no wrapper inside.
_INSIDE = re.compile(rf"\.(?:{'|'.join(w.segment for w in WRAPPERS if w.anywhere)})(?:\.|$)").search
_INSIDE_TEXTS = tuple(f".{w.segment}" for w in WRAPPERS if w.anywhere)
_MARK = "._"  # what every wrapper inside a key begins with; a regex takes ten times as long to find none


def is_wrapped(key: str) -> bool:
    """Whether a segment of the key is one that wrappers add."""
    return not BY_SEGMENT.keys().isdisjoint(key.split("."))


def strip_key(key: str, own: frozenset[str] = frozenset()) -> str:
    """The key without wrapper segments; ``own`` holds segments the model itself uses as children.

    >>> strip_key("module._orig_mod.layer.0.weight")
    'layer.0.weight'
    >>> strip_key("sa1.mlp_module.layer0.weight")
    'sa1.mlp_module.layer0.weight'
    """
    rest = key
    while rest:
        segment, dot, below = rest.partition(".")
        if segment not in BY_SEGMENT or segment in own:
            break
        rest = below if dot else ""
    if _MARK not in rest or not _INSIDE(rest):
        return rest or key
    out: list[str] = []
    for segment in rest.split("."):
        wrapper = BY_SEGMENT.get(segment)
        if wrapper is not None and segment not in own and (wrapper.anywhere or not out):
            continue
        out.append(segment)
    return ".".join(out) or key


def strip_keys(keys: Collection[str]) -> Collection[str]:
    """:func:`strip_key` of each; cheap where all keys are wrapped alike, or none is."""
    rests = keys
    while segment := _front(rests):
        rests = [key[len(segment) + 1 :] for key in rests]
    return rests if segment == "" and "" not in rests else [strip_key(key) for key in keys]


def _front(keys: Collection[str]) -> str | None:
    """The wrapper that all keys begin with, ``""`` where no key has any, None where it is not so simple."""
    least = min(keys, default="")
    front = least.partition(".")[0]
    # What the first and the last key in alphabetical order begin with all keys begin with.
    if front in BY_SEGMENT and least[len(front) :] and max(keys).startswith(f"{front}."):
        return front
    text = "\n".join(keys)
    if not any(segment in text for segment in BY_SEGMENT):
        return ""
    if not BY_SEGMENT.keys().isdisjoint([key.partition(".")[0] for key in keys]):
        return None
    return None if any(inside in text for inside in _INSIDE_TEXTS) else ""


def wrapper_counts(keys: Collection[str], own: frozenset[str] = frozenset()) -> dict[str, int]:
    """Wrapper segment -> how many keys carry it where :func:`strip_key` removes it."""
    segment = None if own else _front(keys)
    if segment is not None:
        below = wrapper_counts([key[len(segment) + 1 :] for key in keys]) if segment else {}
        return {segment: len(keys) + below.pop(segment, 0), **below} if segment else {}
    counts: dict[str, int] = {}
    for key in keys:
        front = True
        if key.partition(".")[0] not in BY_SEGMENT and _MARK not in key:
            continue
        for segment in key.split("."):
            wrapper = BY_SEGMENT.get(segment)
            if wrapper is None or segment in own or not (wrapper.anywhere or front):
                front = False
                continue
            counts[segment] = counts.get(segment, 0) + 1
    return counts
