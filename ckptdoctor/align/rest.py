"""Second chances for what the units left over: other shapes of the same size, then single tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from typing import TYPE_CHECKING

from ckptdoctor.align.matcher import Matching, match_units
from ckptdoctor.align.names import name_of
from ckptdoctor.align.units import Unit, canonical_shape

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

Key = Callable[[Unit], frozenset[tuple[str, tuple[int, ...]]]]


def second_chances(state: State) -> None:
    """First whole units whose shapes are reshapes of each other, then tensors one by one."""
    _round(state, *_free(state), _size_key)
    sources, targets = _free(state)
    if sources and targets:
        _round(state, _split(state, sources), _split(state, targets), _tensor_key, tensors=True)


def _free(state: State) -> tuple[list[Unit], list[Unit]]:
    m = state.matching
    busy = set(m.certain.values()) | {c for cs in m.open.values() for c in cs}
    return (
        [u for u in state.sources if u.index not in busy],
        [u for u in state.targets if u.index not in m.certain and u.index not in m.open],
    )


def _size_key(unit: Unit) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset(
        (role, (leaf.shape[0] if leaf.shape else 0, prod(leaf.shape))) for role, leaf in unit.leaves.items()
    )


def _tensor_key(unit: Unit) -> frozenset[tuple[str, tuple[int, ...]]]:
    (leaf,) = unit.leaves.values()
    return frozenset({("", canonical_shape(leaf.shape))})


def _round(
    state: State, sources: list[Unit], targets: list[Unit], key: Key, *, tensors: bool = False
) -> None:
    for unit in (*sources, *targets):
        unit.key = key(unit)
    if not {u.key for u in sources} & {u.key for u in targets}:
        return
    found = match_units(sources, targets, state.source.ordered)
    if tensors:
        _doubt_anonymous(found, sources, targets)
    m = state.matching
    m.certain.update(found.certain)
    m.reasons.update(found.reasons)
    m.open.update(found.open)
    _register(state, sources, targets, found.certain.values(), found.open)


def _doubt_anonymous(found: Matching, sources: list[Unit], targets: list[Unit]) -> None:
    """A tensor whose name says not even what it is of its module is placed by its shape alone.

    Numbers of such names only count tensors; they are no better evidence than the order of the file.
    """
    shapes_s = Counter(u.exact for u in sources)
    shapes_t = Counter(v.exact for v in targets)
    by_index = {u.index: u for u in sources}
    for v in targets:
        s = found.certain.get(v.index)
        if s is None or by_index[s].role:
            continue
        unique = shapes_s[by_index[s].exact] == shapes_t[v.exact] == 1
        if unique or _word_in_common(by_index[s], v):
            continue
        del found.certain[v.index]
        found.open[v.index] = [s, *(u.index for u in sources if u.exact == v.exact and u.index != s)]


def _word_in_common(u: Unit, v: Unit) -> bool:
    words_u = {t for seg in u.name.concepts for t in seg if isinstance(t, str)}
    return any(t in words_u for seg in v.name.concepts for t in seg)


def _split(state: State, units: list[Unit]) -> list[Unit]:
    """Each tensor as a unit of its own; indices stay unique over all units of the side."""
    start = 1 + max(u.index for u in (*state.sources, *state.targets))
    out: list[Unit] = []
    for unit in units:
        for role, leaf in unit.leaves.items():
            path = unit.path if unit.bare else f"{unit.path}.{role}"
            single = Unit(start + len(out), path, {"weight": leaf}, name_of(path), unit.bare, unit.cls)
            single.role = "" if unit.bare else role
            out.append(single.seal())
    return out


def _register(
    state: State, sources: list[Unit], targets: list[Unit], used: Iterable[int], open_: dict[int, list[int]]
) -> None:
    """Single-tensor units that took part replace the units they came from."""
    known_s, known_t = {u.index for u in state.sources}, {u.index for u in state.targets}
    new_s, new_t = (
        [u for u in sources if u.index not in known_s],
        [u for u in targets if u.index not in known_t],
    )
    if not new_s and not new_t:
        return
    keys_s = {k for u in new_s for leaf in u.leaves.values() for k in leaf.keys}
    keys_t = {k for u in new_t for leaf in u.leaves.values() for k in leaf.keys}
    state.sources = [u for u in state.sources if not _within(u, keys_s)] + new_s
    state.targets = [u for u in state.targets if not _within(u, keys_t)] + new_t


def _within(unit: Unit, keys: set[str]) -> bool:
    return any(k in keys for leaf in unit.leaves.values() for k in leaf.keys)
