"""Crossings between known name families: recipes say what the shapes cannot show.

A recipe is used whole or not at all. Where its names fit and its values are not known, or the two trees do
not repeat alike, the keys whose layout it knows to differ are never claimed by their names alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from ckptdoctor.align import facts
from ckptdoctor.align.chosen import is_declared
from ckptdoctor.align.expressions import UnevenError, UnknownValueError, names_in, substitute
from ckptdoctor.align.model import Choice, Match, Question
from ckptdoctor.align.prefix import Canonical, canonical
from ckptdoctor.align.quantities import Values, facts_behind, solve_values, sufficient
from ckptdoctor.align.recipe import Family, Pairing, Recipe, both_ways
from ckptdoctor.decisions import fact_of
from ckptdoctor.errors import PlanError
from ckptdoctor.keys.capture import Binding, capture
from ckptdoctor.keys.names import skeleton
from ckptdoctor.keys.rules import FirstMatch
from ckptdoctor.trees import ParamTree

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

Bound = tuple[tuple[tuple[str, int], ...], tuple[str, ...], str]


@dataclass
class Names:
    """One tree's names without wrappers, by what they are apart from their numbers."""

    tree: ParamTree
    keys: dict[str, str]  # name -> key

    @cached_property
    def by_skeleton(self) -> dict[str, list[str]]:
        """The names that differ in numbers only."""
        groups: dict[str, list[str]] = defaultdict(list)
        for name in self.keys:
            groups[skeleton(name)].append(name)
        return dict(groups)

    @cached_property
    def ends(self) -> frozenset[str]:
        """The last segment and the last two of every name, numbers aside: a cheap first look."""
        pairs = {name[name.rfind(".", 0, max(name.rfind("."), 0)) + 1 :] for name in self.keys}
        return frozenset(map(skeleton, pairs | {pair.rpartition(".")[2] for pair in pairs}))

    def roots(self, family: Family) -> list[str]:
        """The prefixes (``""`` or with a dot) below which all of the family's keys are."""
        if not all(_end(pattern) in self.ends for pattern in family.keys):
            return []
        found = [set(self._prefixes(pattern)) for pattern in family.keys]
        roots = set.intersection(*found) if found else set()
        return sorted(r for r in roots if not any(r in self._prefixes(p) for p in family.without))

    def _prefixes(self, pattern: str) -> Iterator[str]:
        wanted, text = capture(pattern), _text(pattern)
        size = len(wanted.segments)
        for known, names in self.by_skeleton.items():
            if known == text or known.endswith("." + text):
                for name in names:
                    parts = name.split(".")
                    head, tail = parts[: len(parts) - size], ".".join(parts[len(parts) - size :])
                    if wanted.match(tail) is not None:
                        yield ".".join([*head, ""]) if head else ""

    def resolve(self, pattern: str, root: str, bound: Bound) -> str | None:
        """The name that a pattern stands for below the root; ``^`` is sought outside of it."""
        binding = Binding(dict(bound[0]), bound[1], bound[2])
        text = capture(pattern.removeprefix("^")).fill(binding)
        if text is None:
            return None
        if not pattern.startswith("^"):
            return root + text if root + text in self.keys else None
        return next((p + text for p in _above(root) if p + text in self.keys), None)

    def whole(self, patterns: Sequence[str], root: str, unless: Sequence[str] = ()) -> set[Bound]:
        """What the first pattern's open places stand for, where all patterns are there and no other is."""
        (first,) = self.bindings([patterns[0]], root)
        return {
            bound
            for bound in first
            if all(self.resolve(p, root, bound) is not None for p in patterns)
            and all(self.resolve(p, root, bound) is None for p in unless)
        }

    def bindings(self, patterns: list[str], root: str) -> list[set[Bound]]:
        """For each pattern what its open places stand for in the names that fit."""
        inner = FirstMatch([p for p in patterns if not p.startswith("^")])
        places = [i for i, p in enumerate(patterns) if not p.startswith("^")]
        found: list[set[Bound]] = [set() for _ in patterns]
        for name in self.keys:
            if name.startswith(root):
                for at in inner.candidates(name[len(root) :]):
                    binding = capture(patterns[places[at]]).match(name[len(root) :])
                    if binding is not None:
                        found[places[at]].add(_bound(binding))
        empty: Bound = ((), (), "")
        for i, pattern in enumerate(patterns):
            if pattern.startswith("^") and self.resolve(pattern, root, empty) is not None:
                found[i].add(empty)
        return found


@lru_cache(maxsize=4096)
def _text(pattern: str) -> str:
    """The skeleton of what fits the pattern."""
    return ".".join(s or "*" for s in capture(pattern).skeletons())


@lru_cache(maxsize=4096)
def _end(pattern: str) -> str:
    return ".".join(_text(pattern).split(".")[-2:])


def _bound(binding: Binding) -> Bound:
    return tuple(sorted(binding.indices.items())), binding.stars, binding.deep


def _above(root: str) -> Iterator[str]:
    """Prefixes outside of the root, the nearest first."""
    parts = root.rstrip(".").split(".") if root else []
    for n in range(len(parts) - 1, -1, -1):
        yield ".".join([*parts[:n], ""]) if n else ""
    if not parts:
        yield ""


def _sharing(pairs: Sequence[Pairing]) -> list[list[Pairing]]:
    """Pairings of the same keys (a block with a shortcut, one without) have them in common."""
    groups: dict[tuple[str, ...], list[Pairing]] = {}
    for pair in pairs:
        group = groups.get(("left", *pair.left)) or groups.get(("right", *pair.right)) or []
        group.append(pair)
        groups["left", *pair.left] = groups["right", *pair.right] = group
    return list({id(group): group for group in groups.values()}.values())


def named(tree: ParamTree, found: Canonical) -> Names:
    """Names of the open keys of a tree; of several keys of one name the last."""
    return Names(tree, {**found.names, **{n: keys[-1] for n, keys in found.duplicates.items()}})


@dataclass
class Crossing:
    """A recipe whose names fit two trees, and what it makes of them."""

    recipe: Recipe
    source: Names
    target: Names
    roots: tuple[str, str]
    claims: dict[str, Choice] = field(default_factory=dict)  # model key -> sources and ops
    open: dict[str, Choice] = field(default_factory=dict)  # the same where a value is not known
    lost: dict[str, str] = field(default_factory=dict)  # model key -> why no op makes it
    needs: set[str] = field(default_factory=set)  # values that are not known
    values: Values = field(default_factory=lambda: Values({}, {}))

    def work_out(self, values: Values) -> bool:
        """Whether the recipe explains both trees; then claims, open keys and lost ones are filled in."""
        self.values = values
        for pairs in _sharing(self.recipe.pairs):
            mine = [self.source.whole(p.left, self.roots[0], p.unless[0]) for p in pairs]
            theirs = [self.target.whole(p.right, self.roots[1], p.unless[1]) for p in pairs]
            here, there = set[Bound]().union(*mine), set[Bound]().union(*theirs)
            if here and there and here != there:
                return False
            for pair, left, right in zip(pairs, mine, theirs, strict=True):
                if not all(self._pair(pair, bound, values) for bound in sorted(left & right)):
                    return False
        return True

    def _pair(self, pair: Pairing, bound: Bound, values: Values) -> bool:
        left = [self.source.resolve(p, self.roots[0], bound) for p in pair.left]
        right = [self.target.resolve(p, self.roots[1], bound) for p in pair.right]
        sources = tuple(self.source.keys[n] for n in left if n is not None)
        targets = [self.target.keys[n] for n in right if n is not None]
        if not pair.forward:
            self.lost.update(dict.fromkeys(targets, pair.one_way))
            return True
        return all(
            self._claim(t, sources, text, values) for t, text in zip(targets, pair.forward, strict=True)
        )

    def _claim(self, target: str, sources: tuple[str, ...], text: str, values: Values) -> bool:
        from ckptdoctor.ops import parse_chain

        why = self.recipe.note if text else ""
        try:
            chain = parse_chain(substitute(text, values.known, values.look))
            made = chain.out_shape([self.source.tree[s].shape for s in sources])
        except UnknownValueError:
            self.needs |= names_in(text) - set(values.known)
            self.open[target] = Choice(sources, (text.replace("{", "").replace("}", ""),), why)
            return True
        except (PlanError, UnevenError):
            return False
        if made != self.target.tree[target].shape:
            return False
        self.claims[target] = Choice(sources, chain.texts, why)
        return True

    def hidden(self) -> list[str]:
        """Model keys whose layout the recipe knows to differ from the checkpoint's."""
        special = [p for p in self.recipe.pairs if any(p.forward) or p.one_way]
        found = self.target.bindings([p.right[0] for p in special], self.roots[1])
        return [
            self.target.keys[name]
            for pair, bounds in zip(special, found, strict=True)
            for bound in bounds
            for pattern in pair.right
            if (name := self.target.resolve(pattern, self.roots[1], bound)) is not None
        ]


def both_canonical(state: State) -> tuple[Canonical, Canonical]:
    """What is open on both sides, by name."""
    return canonical(facts.open_source(state)), canonical(facts.open_target(state))


def cross(state: State) -> None:
    """Claim what a recipe explains; note the keys that must not be claimed without it."""
    state.canonical = mine, theirs = both_canonical(state)
    if theirs.names.keys() <= mine.names.keys():
        return
    source, target = named(state.source, mine), named(state.target, theirs)
    found = list(_crossings(source, target))
    whole: list[Crossing] = []
    for crossing in found:
        values = solve_values(crossing.recipe, _trees(crossing), facts.known(state))
        if _disputed(state, crossing.recipe):
            values.known.clear()
        (whole if crossing.work_out(values) else state.suspects).append(crossing)
    _settle(state, whole)
    if whole:
        state.canonical = both_canonical(state)


def _disputed(state: State, recipe: Recipe) -> list[str]:
    """Facts that the ops rest on and two places tell differently: what else would give them is no proof."""
    used = {name for pair in recipe.pairs for name in pair.needs}
    decided = {fact_of(value).name for value in facts.of_kind(state.decisions, "value")}
    return facts.conflicts(state, facts_behind(recipe, used) - decided)


def _trees(crossing: Crossing) -> Mapping[str, tuple[ParamTree, dict[str, str], str]]:
    left, right = crossing.recipe.sides
    source, target = crossing.source, crossing.target
    return {
        left: (source.tree, source.keys, crossing.roots[0]),
        right: (target.tree, target.keys, crossing.roots[1]),
    }


def _crossings(source: Names, target: Names) -> Iterator[Crossing]:
    for recipe in both_ways():
        mine = source.roots(recipe.left)
        theirs = target.roots(recipe.right) if mine else []
        if len(mine) == len(theirs) == 1:
            yield Crossing(recipe, source, target, (mine[0], theirs[0]))


def _settle(state: State, whole: list[Crossing]) -> None:
    """Claims become matches; where two recipes differ, or a value is unknown, it is a question."""
    ways: dict[str, list[Choice]] = defaultdict(list)
    for crossing in whole:
        for key, choice in (*crossing.claims.items(), *crossing.open.items()):
            if all((choice.sources, choice.ops) != (c.sources, c.ops) for c in ways[key]):
                ways[key].append(choice)
    unknown = {k for c in whole for k in c.open}
    names = {k: c.recipe.name for c in reversed(whole) for k in (*c.claims, *c.open)}
    for key, choices in ways.items():
        first = choices[0]
        if len(choices) == 1 and key not in unknown:
            reasons = (f"recipe {names[key]}", *filter(None, [first.why]))
            state.matches[key] = Match(key, "safe", first.sources, first.ops, reasons)
        else:
            state.matches[key] = Match(key, "undecided", (), (), (f"recipe {names[key]}",), tuple(choices))
    for crossing in whole:
        for key, why in crossing.lost.items():
            state.matches[key] = Match(key, "missing", evidence=(why,))
        _ask(state, crossing)
    state.crossed = tuple(c.recipe.name for c in whole)


def _ask(state: State, crossing: Crossing) -> None:
    recipe = crossing.recipe
    if crossing.open:
        wanted = sufficient(recipe, crossing.values, crossing.needs)
        title = f"{recipe.title}: {', '.join(sorted(crossing.needs))} must be known, and no shape shows it"
        notes = (*facts.conflicts(state, wanted), *filter(None, [crossing.values.conflict]))
        flags = tuple((f"--value {name}=N", "or a config.json beside the checkpoint") for name in wanted)
        state.questions.append(Question("recipe", title, tuple(crossing.open), (), notes, flags))
    if crossing.lost:
        title = f"{recipe.title}: {next(iter(crossing.lost.values()))}"
        flags = tuple((f"--reinit '{k}'", "keep the model's initial value") for k in list(crossing.lost)[:3])
        state.questions.append(Question("recipe", title, tuple(crossing.lost), (), (recipe.note,), flags))


def unexplained(state: State) -> None:
    """What a recipe's names fit without its explaining both trees is never claimed by name alone."""
    from ckptdoctor.align.checks import take_back

    for crossing in state.suspects:
        recipe = crossing.recipe
        known = {k: state.matches[k] for k in crossing.hidden() if k in state.matches}
        keys = [k for k, m in known.items() if m.status == "safe" and not is_declared(m)]
        if not keys or recipe.name in state.crossed or facts.accepted(state, f"{recipe.name}-layout"):
            continue
        title = (
            f"{recipe.title} keep these tensors in different layouts, and the two trees do not fit the recipe"
        )
        take_back(state, keys, title)
        flag = (f"--accept {recipe.name}-layout", "copy them as they are")
        state.questions.append(Question("recipe", title, tuple(keys), (), (recipe.note,), (flag,)))
