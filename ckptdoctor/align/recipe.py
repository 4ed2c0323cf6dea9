"""Recipes: what shapes cannot show, written down once for each pair of known name families.

A recipe is a TOML file in ``recipes/``. It names keys by which either side is recognised, the values it
needs (head counts) and where they can be read, and for each pair of keys the ops in both directions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from ckptdoctor.align.expressions import names_in


@dataclass(frozen=True, slots=True)
class Family:
    """One side: keys that must all be there below one root, and patterns of which none may be."""

    origin: str
    keys: tuple[str, ...]
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pairing:
    """Keys of the two sides that hold the same values.

    ``forward[i]`` is the chain that makes ``right[i]`` of all of ``left``; ``back`` the way back, with
    ``one_way`` saying why where there is none. Patterns are relative to the root, or absolute after ``^``.
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    forward: tuple[str, ...]
    back: tuple[str, ...]
    one_way: str = ""
    # Keys of either side: where one of them is there, another pairing is meant.
    unless: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def needs(self) -> set[str]:
        """Names of the values that the forward chains use."""
        return {n for chain in self.forward for n in names_in(chain)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A crossing from family ``left`` to family ``right``."""

    name: str
    title: str
    note: str
    sources: tuple[str, ...]
    left: Family
    right: Family
    pairs: tuple[Pairing, ...]
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sides: tuple[str, str] = ("a", "b")  # what `dim('a:...')` means by left and right

    def reversed(self) -> Recipe:
        """The crossing the other way round."""
        pairs = tuple(
            replace(p, left=p.right, right=p.left, forward=p.back, back=p.forward, unless=p.unless[::-1])
            for p in self.pairs
        )
        return replace(
            self, left=self.right, right=self.left, pairs=pairs, sides=(self.sides[1], self.sides[0])
        )


def parse(text: str) -> Recipe:
    """Read one recipe. Raises ``KeyError`` or ``ValueError`` when something is missing or does not fit."""
    data = tomllib.loads(text)
    return Recipe(
        data["name"],
        data["title"],
        data["note"],
        tuple(data["sources"]),
        _family(data["a"]),
        _family(data["b"]),
        tuple(_pairing(row) for row in data["pair"]),
        {name: tuple(ways) for name, ways in data.get("values", {}).items()},
    )


def _family(row: Mapping[str, Any]) -> Family:
    return Family(row["library"], tuple(row["keys"]), tuple(row.get("without", ())))


def _pairing(row: Mapping[str, Any]) -> Pairing:
    left, right = tuple(row["a"]), tuple(row["b"])
    one_way = row.get("one_way", "")
    return Pairing(
        left,
        right,
        _chains(row, "to_b", left, right),
        () if one_way else _chains(row, "to_a", right, left),
        one_way,
    )


def _chains(
    row: Mapping[str, Any], name: str, sources: tuple[str, ...], made: tuple[str, ...]
) -> tuple[str, ...]:
    chains = tuple(row.get(name, ("",) * len(made) if len(sources) == 1 else ()))
    if len(chains) != len(made):
        raise ValueError(f"`{name}` of {', '.join(sources)} has {len(chains)} chains for {len(made)} keys")
    return chains


@cache
def recipes() -> tuple[Recipe, ...]:
    """All recipes, sorted by name."""
    return tuple(sorted(_read(), key=lambda r: r.name))


@cache
def both_ways() -> tuple[Recipe, ...]:
    """Each recipe and its way back."""
    return tuple(r for known in recipes() for r in (known, known.reversed()))


def _read() -> Iterator[Recipe]:
    for file in (files("ckptdoctor.align") / "recipes").iterdir():
        if file.name.endswith(".toml"):
            yield parse(file.read_text(encoding="utf-8"))
