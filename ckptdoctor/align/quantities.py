"""The values that a recipe needs: every way to know one is tried, and those that work must agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ckptdoctor.align.expressions import (
    Number,
    UnevenError,
    UnknownValueError,
    calls_in,
    dims_in,
    evaluate,
    names_in,
)
from ckptdoctor.align.recipe import Recipe
from ckptdoctor.facts import Fact
from ckptdoctor.trees import ParamTree

Tree = tuple[ParamTree, dict[str, str], str]  # the tree, its names -> keys, the family's root in it


@dataclass
class Values:
    """What is known. ``conflict`` says in words why a value is not: two ways to know it differ."""

    trees: Mapping[str, Tree]
    facts: Mapping[str, Fact]
    known: dict[str, Number] = field(default_factory=dict)
    conflict: str = ""

    def look(self, call: str, args: tuple[object, ...]) -> Number:
        """``fact('name')`` or ``dim('a:key',n)``."""
        if call == "fact" and len(args) == 1:
            fact = self.facts.get(str(args[0]))
            if fact is None:
                raise UnknownValueError(str(args[0]))
            return fact.value
        if call == "dim" and len(args) == 2:
            return self._dim(str(args[0]), args[1])
        raise ValueError(f"a recipe knows fact(name) and dim(side:key, n), not {call}")

    def _dim(self, place: str, n: object) -> Number:
        side, _, name = place.partition(":")
        tree, keys, root = self.trees[side]
        whole = name[1:] if name.startswith("^") else root + name
        spec = tree.specs.get(keys.get(whole, whole)) or tree.transient.get(whole)
        if spec is None or not isinstance(n, int) or n >= len(spec.shape):
            raise UnknownValueError(place)
        return spec.shape[n]


def solve_values(recipe: Recipe, trees: Mapping[str, Tree], facts: Mapping[str, Fact]) -> Values:
    """Every value that can be known, in any order. One that is known in two unlike ways is not known."""
    values = Values(trees, facts)
    for _ in recipe.values:
        before = dict(values.known)
        values.conflict = ""
        found = {name: _ways(values, name, ways) for name, ways in recipe.values.items()}
        values.known = {n: next(iter(set(w.values()))) for n, w in found.items() if len(set(w.values())) == 1}
        for name, ways in found.items():
            if len(set(ways.values())) > 1:
                said = ", ".join(f"{value} by {way}" for way, value in ways.items())
                values.conflict = f"{name} is {said}"
        if values.known == before:
            break
    return values


def _ways(values: Values, name: str, ways: Sequence[str]) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for way in ways:
        try:
            found[way] = evaluate(way, values.known, values.look)
        except UnknownValueError:
            continue
        except UnevenError as error:
            found[f"{way} ({error})"] = -1
    return found


def sufficient(recipe: Recipe, values: Values, needs: Iterable[str]) -> list[str]:
    """Facts each of which would make all the needed values known; all that play a part where none does."""
    asked = dict.fromkeys(f for ways in recipe.values.values() for way in ways for f in calls_in(way, "fact"))
    enough = [fact for fact in asked if set(needs) <= _knowable(recipe, values, fact)]
    return enough or list(asked)


def _knowable(recipe: Recipe, values: Values, fact: str) -> set[str]:
    """Names of values that would be known if this fact were, whatever it is."""
    known = set(values.known)
    for _ in recipe.values:
        known |= {
            n for n, ways in recipe.values.items() if any(_follows(w, values, known, fact) for w in ways)
        }
    return known


def _follows(way: str, values: Values, known: set[str], fact: str) -> bool:
    if not names_in(f"{{{way}}}") <= known:
        return False
    if any(f != fact and f not in values.facts for f in calls_in(way, "fact")):
        return False
    return all(_has_dim(values, *place) for place in dims_in(way))


def _has_dim(values: Values, place: str, n: int) -> bool:
    try:
        values.look("dim", (place, n))
    except UnknownValueError:
        return False
    return True


def facts_behind(recipe: Recipe, needs: Iterable[str]) -> set[str]:
    """Facts on which these values may rest, in any of the ways to know them."""
    found: set[str] = set()
    todo, done = list(needs), set[str]()
    while todo:
        name = todo.pop()
        if name not in done:
            done.add(name)
            for way in recipe.values.get(name, ()):
                found.update(calls_in(way, "fact"))
                todo += names_in(f"{{{way}}}")
    return found
