"""Repeated blocks as one template: match one block, pair the others by their rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ckptdoctor.align.names import Token
from ckptdoctor.align.units import Unit

REPEATS = 4  # equal blocks from which one stands for all
LONE_REPEATS = 40  # the same for blocks of a single module

Path = tuple[Token, ...]


@dataclass(frozen=True)
class Templates:
    """``shown``: the units that stand for their likes; ``instances``: all of a shown unit, in order."""

    shown: list[Unit]
    instances: dict[int, list[Unit]]


def compress(units: Sequence[Unit]) -> Templates:
    """Fold blocks that differ in their number alone (same names below it, same shapes)."""
    block_class = _classes(units)
    groups: dict[tuple[object, ...], list[Unit]] = defaultdict(list)
    for unit in units:
        groups[_identity(unit, block_class)].append(unit)
    for members in groups.values():
        members.sort(key=lambda u: u.name.numbers)
    shown = sorted((m[0] for m in groups.values()), key=lambda u: u.index)
    return Templates(shown, {m[0].index: m for m in groups.values()})


def _identity(unit: Unit, block_class: dict[Path, int]) -> tuple[object, ...]:
    """The unit's path with the number of every folded block replaced by the block's class."""
    flat = unit.name.flat
    out: list[object] = [*flat, unit.path.count("."), unit.bare]
    for i in unit.name.places:
        found = block_class.get(flat[: i + 1])
        if found is not None:
            out[i] = "#", found
    return tuple(out)


def _classes(units: Sequence[Unit]) -> dict[Path, int]:
    """Path of a numbered block -> id shared by all equal blocks of one list."""
    held: dict[Path, list[int]] = {}  # what is in a block, as a sum of hashes, and how much
    for unit in units:
        flat = unit.name.flat
        for i in unit.name.places:
            own = hash((flat[i + 1 :], unit.exact)) & 0xFFFFFFFFFFFF
            block = held.get(flat[: i + 1])
            if block is None:
                held[flat[: i + 1]] = [own, 1]
            else:
                block[0] += own
                block[1] += 1
    lists: dict[tuple[Path, int], list[Path]] = defaultdict(list)
    for path, (total, _) in held.items():
        lists[path[:-1], total].append(path)
    found: dict[Path, int] = {}
    for (_, total), blocks in lists.items():
        least = REPEATS if held[blocks[0]][1] > 1 else LONE_REPEATS
        if len(blocks) >= least:
            found.update(dict.fromkeys(blocks, total))
    return found
