"""Lossy ways to make a tensor fit, offered with the flag that chooses them. Never taken unasked."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING

from ckptdoctor.align.names import name_of

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

Shape = tuple[int, ...]
MOST = 4  # offers of one question
PREFIXES = (0, 1, 2, 5)  # tokens before the grid: none, class, class and distillation, class and registers
SMALLEST = 2  # rows of a grid


def offers(state: State, pairs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Flags for model keys (-> their namesakes in the checkpoint) that one flag can answer together."""
    ways = [_ways(key, state.source[mine].shape, state.target[key].shape) for key, mine in pairs.items()]
    if not ways:
        return ()
    if len(ways) > 1 and all(way == ways[0] for way in ways):
        return tuple((f"--op '{_pattern(list(pairs))}={op}'", words) for op, words in ways[0].items())[:MOST]
    flags = [(f"--op '{k}={op}'", w) for k, way in zip(pairs, ways, strict=True) for op, w in way.items()]
    return tuple(flags)[:MOST]


def _pattern(keys: list[str]) -> str:
    """One module's tensors as a pattern, where they are all of one module."""
    parents = {k.rpartition(".")[0] for k in keys}
    return f"{parents.pop()}.*" if len(parents) == 1 else f"{{{','.join(keys)}}}"


def _ways(key: str, have: Shape, want: Shape) -> dict[str, str]:
    """Op text -> what it does to the values."""
    if len(have) != len(want):
        return {}
    unlike = [d for d in range(len(have)) if have[d] != want[d]]
    if len(unlike) != 1:
        return {}
    dim = unlike[0]
    if is_positions(key):
        return _grids(have, want, dim)
    if len(have) > 2 and dim == 1:
        return _channels(have[1], want[1])
    return _rows(dim, have[dim], want[dim]) if dim == 0 else {}


def is_positions(key: str) -> bool:
    """Whether the name is that of a table of positions."""
    spoken = {t for segment in name_of(key).concepts for t in segment}
    return bool(spoken & {"pos", "rel_pos"})


def _rows(dim: int, have: int, want: int) -> dict[str, str]:
    if want > have:
        return {f"pad({dim},{want})": f"keep its {have} rows and fill the other {want - have} with zeros"}
    return {
        f"slice({dim},0,{want})": f"keep the first {want} of its {have} rows",
        f"take({dim};@rows.csv)": f"keep the {want} rows that the file lists, one number a line",
    }


def _channels(have: int, want: int) -> dict[str, str]:
    if want == 1:
        return {"sumdim(1)": f"sum its {have} input channels into one"}
    return {f"tile(1,{want})": f"repeat its {have} input channels to {want}, scaled"}


def _grids(have: Shape, want: Shape, dim: int) -> dict[str, str]:
    if dim != len(have) - 2:
        return {}
    found = {}
    for prefix in PREFIXES:
        old, new = _side(have[dim] - prefix), _side(want[dim] - prefix)
        if old and new:
            kept = f"keeping what stands before the grid ({prefix})" if prefix else "the whole table"
            words = f"resample the grid from {old} x {old} to {new} x {new}, {kept}"
            found[f"resize_grid({prefix};{old},{old};{new},{new})"] = words
    return found


def _side(tokens: int) -> int:
    """The side of a square grid of so many tokens, or 0."""
    side = isqrt(tokens) if tokens > 0 else 0
    return side if side * side == tokens and side >= SMALLEST else 0
