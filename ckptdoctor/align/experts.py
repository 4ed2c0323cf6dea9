"""Mixtures of experts: a list of experts on one side, one tensor a matrix for all of them on the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ckptdoctor.align.names import name_of
from ckptdoctor.align.roles import trio_parts, values_of
from ckptdoctor.align.units import Leaf, Unit, is_stacked

_NAMES = {"down": "down_proj", "gate": "gate_proj", "up": "up_proj"}


def stack_experts(mine: list[Unit], theirs: Sequence[Unit]) -> list[Unit]:
    """A list of experts becomes one tensor a matrix where the other side keeps them stacked.

    Works for either side: as the checkpoint's the tensors are joined, as the model's taken apart.
    """
    stacked = [u for u in theirs if is_stacked(u)]
    if not stacked:
        return mine
    counts = {u.leaves["weight"].shape[0] for u in stacked}
    fused = any(values_of(u).get("ffn") == "gateup" for u in stacked)
    out, gone = [], set()
    for base, members in _expert_groups(mine).items():
        sizes = {len(units) for units in members.values()}
        if len(sizes) != 1 or not sizes <= counts:
            continue
        gone |= {u.index for units in members.values() for u in units}
        out += _stack(base, dict(members), fused)
    return sorted([u for u in mine if u.index not in gone] + out, key=lambda u: u.index)


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
        out.append(_fused(f"{base}.gate_up_proj", gates, ups))
    names = {inner: name for name, inner in part.items()}
    for inner, units in members.items():
        keys = tuple(k for u in units for k in u.leaves["weight"].keys)
        shape = (len(units), *units[0].leaves["weight"].shape)
        parts = tuple((f"select(0,{e})",) for e in range(len(units)))
        leaf = Leaf(keys, shape, ("stack(0)",), parts=parts)
        name = _NAMES.get(names.get(inner, ""), inner)
        out.append(_composite(f"{base}.{name}", leaf, units))
    return out


def _fused(path: str, gates: list[Unit], ups: list[Unit]) -> Unit:
    """Each expert's gate rows, then its up rows."""
    rows, columns = gates[0].leaves["weight"].shape
    pairs = list(zip(gates, ups, strict=True))
    keys = tuple(k for pair in pairs for unit in pair for k in unit.leaves["weight"].keys)
    shape = (len(gates), 2 * rows, columns)
    chain = ("concat(0)", f"reshape({','.join(map(str, shape))})")
    parts = tuple((f"select(0,{e})", f"chunk(0,{i},2)") for e in range(len(gates)) for i in (0, 1))
    return _composite(path, Leaf(keys, shape, chain, parts=parts), [u for pair in pairs for u in pair])


def _composite(path: str, leaf: Leaf, parts: Sequence[Unit]) -> Unit:
    first = parts[0]
    return Unit(first.index, path, {"weight": leaf}, name_of(path), bare=True, parts=tuple(parts)).seal()
