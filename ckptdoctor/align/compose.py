"""Composite units: what one side keeps fused (q/k/v, gate/up) and the other keeps apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ckptdoctor.align.folds import norm_dim
from ckptdoctor.align.names import name_of
from ckptdoctor.align.roles import trio_parts, values_of
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
        same = {u.path for u in theirs}
        sets = [s for s in part_sets(mine, pack) if _packable(s) and not all(u.path in same for u in s)]
        ranks = {len(s[0].leaves["weight"].shape) for s in sets}
        wanted = sum(len(u.leaves["weight"].shape) in ranks for u in fused_units(theirs, pack))
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
    inner = {u.leaves["weight"].shape[1:] for u in units if "weight" in u.leaves}
    return "weight" in _common(units) and len(inner) == 1


def _pack(units: Sequence[Unit], pack: str) -> Unit:
    first = units[0]
    leaves: dict[str, Leaf] = {}
    for role in _common(units):
        parts = [u.leaves[role] for u in units]
        keys = tuple(k for leaf in parts for k in leaf.keys)
        shape = parts[0].shape
        total = (sum(leaf.shape[0] for leaf in parts), *shape[1:]) if shape else shape
        sizes = tuple(leaf.shape[0] for leaf in parts if leaf.shape)
        leaves[role] = Leaf(keys, total, ("concat(0)",), sizes)
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


def stack_experts(sources: list[Unit], targets: Sequence[Unit]) -> list[Unit]:
    """A list of experts becomes one tensor per matrix where the model keeps them stacked."""
    stacked = [u for u in targets if u.bare and len(u.leaves["weight"].shape) == 3 and _has(u, "experts")]
    if not stacked:
        return sources
    counts = {u.leaves["weight"].shape[0] for u in stacked}
    fused = any(values_of(u).get("ffn") == "gateup" for u in stacked)
    groups = _expert_groups(sources)
    out, gone = [], set()
    for base, members in groups.items():
        sizes = {len(units) for units in members.values()}
        if len(sizes) != 1 or not sizes <= counts:
            continue
        out += _stack(base, members, fused)
        gone |= {u.index for units in members.values() for u in units}
    return sorted([u for u in sources if u.index not in gone] + out, key=lambda u: u.index)


def _has(unit: Unit, concept: str) -> bool:
    return any(concept in segment for segment in unit.name.concepts)


def _expert_groups(units: Sequence[Unit]) -> dict[str, dict[str, list[Unit]]]:
    """Path of the expert list -> name inside an expert -> the experts' units in order."""
    groups: dict[str, dict[str, list[Unit]]] = defaultdict(lambda: defaultdict(list))
    for unit in units:
        segments = unit.path.split(".")
        for i in range(len(segments) - 2):
            if segments[i + 1].isdigit() and "experts" in name_of(segments[i]).concepts[0]:
                if set(unit.leaves) == {"weight"}:
                    base, inner = ".".join(segments[: i + 1]), ".".join(segments[i + 2 :])
                    groups[base][inner].append(unit)
                break
    for members in groups.values():
        for found in members.values():
            found.sort(key=lambda u: u.name.numbers)
    return groups


def _stack(base: str, members: dict[str, list[Unit]], fused: bool) -> list[Unit]:
    part = {str(values_of(units[0]).get("ffn")): inner for inner, units in members.items()}
    part.update(trio_parts({inner: units[0] for inner, units in members.items()}))
    out = []
    if fused and "gate" in part and "up" in part:
        gates, ups = members.pop(part["gate"]), members.pop(part["up"])
        rows, columns = gates[0].leaves["weight"].shape
        keys = tuple(
            k for g, u in zip(gates, ups, strict=True) for x in (g, u) for k in x.leaves["weight"].keys
        )
        shape: tuple[int, ...] = (len(gates), 2 * rows, columns)
        chain = ("concat(0)", f"reshape({','.join(map(str, shape))})")
        out.append(_composite(gates[0], f"{base}.gate_up_proj", Leaf(keys, shape, chain), (*gates, *ups)))
    names = {inner: name for name, inner in part.items()}
    for inner, units in members.items():
        keys = tuple(k for u in units for k in u.leaves["weight"].keys)
        shape = (len(units), *units[0].leaves["weight"].shape)
        name = {"down": "down_proj", "gate": "gate_proj", "up": "up_proj"}.get(names.get(inner, ""), inner)
        out.append(_composite(units[0], f"{base}.{name}", Leaf(keys, shape, ("stack(0)",)), tuple(units)))
    return out


def _composite(first: Unit, path: str, leaf: Leaf, parts: tuple[Unit, ...]) -> Unit:
    return Unit(first.index, path, {"weight": leaf}, name_of(path), bare=True, parts=parts).seal()
