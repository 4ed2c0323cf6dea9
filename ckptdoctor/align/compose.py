"""Composite units: what one side keeps fused (q/k/v, gate/up) and the other keeps apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ckptdoctor.align.names import name_of
from ckptdoctor.align.roles import values_of
from ckptdoctor.align.units import Leaf, Unit

# fused concept -> (group it belongs to, its parts in the order in which they are packed)
PACKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "qkv": ("part", ("q", "k", "v")),
    "kv": ("part", ("k", "v")),
    "gateup": ("ffn", ("gate", "up")),
}


def fused_units(units: Sequence[Unit], pack: str) -> list[Unit]:
    """Units whose name says that they hold the whole pack."""
    group = PACKS[pack][0]
    return [u for u in units if values_of(u).get(group) == pack and "weight" in u.leaves]


def part_sets(units: Sequence[Unit], pack: str) -> list[list[Unit]]:
    """Sibling units that are the parts of one pack, complete and in packing order."""
    group, parts = PACKS[pack]
    siblings: dict[str, dict[str, list[Unit]]] = defaultdict(lambda: defaultdict(list))
    for unit in units:
        value = values_of(unit).get(group)
        if isinstance(value, str) and value in parts:
            siblings[unit.path.rpartition(".")[0]][value].append(unit)
    found = []
    for members in siblings.values():
        if set(members) == set(parts) and all(len(m) == 1 for m in members.values()):
            found.append([members[p][0] for p in parts])
    return found


def compose(mine: list[Unit], theirs: Sequence[Unit]) -> list[Unit]:
    """Replace complete part sets by one composite unit where the other side holds them fused."""
    for pack in PACKS:
        fused = fused_units(theirs, pack)
        if not fused or fused_units(mine, pack):
            continue
        sets = [s for s in part_sets(mine, pack) if _packable(s)]
        if not sets or len(sets) != len(fused):
            continue
        gone = {u.index for s in sets for u in s}
        mine = [u for u in mine if u.index not in gone] + [_pack(s, pack) for s in sets]
        mine.sort(key=lambda u: u.index)
    return mine


def _packable(units: Sequence[Unit]) -> bool:
    roles = {frozenset(u.leaves) for u in units}
    inner = {u.leaves["weight"].shape[1:] for u in units if "weight" in u.leaves}
    return len(roles) == 1 and len(inner) == 1


def _pack(units: Sequence[Unit], pack: str) -> Unit:
    first = units[0]
    leaves: dict[str, Leaf] = {}
    for role in first.leaves:
        parts = [u.leaves[role] for u in units]
        keys = tuple(k for leaf in parts for k in leaf.keys)
        shape = parts[0].shape
        total = (sum(leaf.shape[0] for leaf in parts), *shape[1:]) if shape else shape
        leaves[role] = Leaf(keys, total, ("concat(0)",))
    path = f"{first.path.rpartition('.')[0]}.{pack}".lstrip(".")
    return Unit(first.index, path, leaves, name_of(path), parts=tuple(units)).seal()
