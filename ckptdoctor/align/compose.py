"""Composite units: what one side keeps fused (q/k/v, gate/up) and the other keeps apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ckptdoctor.align.folds import norm_dim
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
    named = (u for u in units if u.name.form.values.get(group) == pack)  # a cheap first look
    return [u for u in named if values_of(u).get(group) == pack and "weight" in u.leaves]


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
    same: set[str] = set()
    for pack in PACKS:
        fused = fused_units(theirs, pack)
        if not fused:  # nothing to pack for, in the usual case
            continue
        same = same or {u.path for u in theirs}
        sets = [s for s in part_sets(mine, pack) if _packable(s) and not all(u.path in same for u in s)]
        ranks = {len(s[0].leaves["weight"].shape) for s in sets}
        wanted = sum(len(u.leaves["weight"].shape) in ranks for u in fused)
        spare = wanted - len(fused_units(mine, pack))
        both = part_sets(theirs, pack)  # split on the other side as well: nothing to pack
        if not sets or both or len(sets) not in (wanted, spare):
            continue
        gone = {u.index for s in sets for u in s}
        packed = [unit for s in sets for unit in (_pack(s, pack), *_rests(s))]
        mine = sorted([u for u in mine if u.index not in gone] + packed, key=lambda u: u.index)
    return mine


def _common(units: Sequence[Unit]) -> list[str]:
    return [role for role in units[0].leaves if all(role in u.leaves for u in units)]


def _rests(units: Sequence[Unit]) -> list[Unit]:
    """What only some of the parts have (a bias of q and v, say) stays where it is."""
    out = []
    for unit in units[1:] if len(_common(units)) == len(units[0].leaves) else units:
        rest = {role: leaf for role, leaf in unit.leaves.items() if role not in _common(units)}
        if rest:
            index = unit.index if unit is not units[0] else -1 - unit.index
            out.append(Unit(index, unit.path, rest, unit.name, unit.bare, unit.cls).seal())
    return out


def _packable(units: Sequence[Unit]) -> bool:
    weights = [u.leaves["weight"] for u in units if "weight" in u.leaves]
    inner = {(leaf.shape[1:], leaf.ops) for leaf in weights}
    # Of a square `kernel` nothing says yet whether its rows are inputs or outputs.
    turned = any(len(leaf.shape) == 2 and not leaf.ops and _is_kernel(leaf) for leaf in weights)
    return "weight" in _common(units) and len(inner) == 1 and not turned


def _is_kernel(leaf: Leaf) -> bool:
    return leaf.keys[0].replace("/", ".").rpartition(".")[2].startswith("kernel")


def _pack(units: Sequence[Unit], pack: str) -> Unit:
    first = units[0]
    leaves: dict[str, Leaf] = {}
    for role in _common(units):
        parts = [u.leaves[role] for u in units]
        keys = tuple(k for leaf in parts for k in leaf.keys)
        shape = parts[0].shape
        total = (sum(leaf.shape[0] for leaf in parts), *shape[1:]) if shape else shape
        sizes = tuple(leaf.shape[0] for leaf in parts if leaf.shape)
        leaves[role] = Leaf(keys, total, (*(f"each:{op}" for op in parts[0].ops), "concat(0)"), sizes)
    path = f"{first.path.rpartition('.')[0]}.{pack}".lstrip(".")
    return Unit(first.index, path, leaves, name_of(path), parts=tuple(units)).seal()


def fold_weight_norm(sources: list[Unit], targets: Sequence[Unit]) -> list[Unit]:
    """A weight kept as magnitude and direction becomes the plain weight where the model wants that."""
    if any("weight_g" in u.leaves for u in targets):
        return sources
    for unit in sources:
        g, v = unit.leaves.get("weight_g"), unit.leaves.get("weight_v")
        if g is None or v is None or "weight" in unit.leaves:
            continue
        dim = norm_dim(g.shape, v.shape)
        if dim is not None:
            del unit.leaves["weight_g"], unit.leaves["weight_v"]
            unit.leaves["weight"] = Leaf((*g.keys, *v.keys), v.shape, (f"weight_norm({dim})",))
            unit.seal()
    return sources
