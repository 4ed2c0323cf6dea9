"""From pairs of names to the fewest readable rename rules that give exactly these pairs."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ckptdoctor.keys import FirstMatch, Rule
from ckptdoctor.keys.capture import capture
from ckptdoctor.planner.candidates import Candidate, cut, explicit, head_candidates
from ckptdoctor.planner.indices import formulas

MAX_FRONTS = 20  # how many `**.gamma -> **.weight` rules are tried
SAMPLE = 300  # names asked for the rules that are to blame
MIN_FRONT = 3  # keys that such a rule must rename


@dataclass(frozen=True, slots=True)
class Renamed:
    """One rule and the names that it renames when the rules are tried in order."""

    rule: Rule
    names: tuple[str, ...]


def renames(pairs: Mapping[str, str], reserved: Collection[str] = ()) -> list[Renamed]:
    """Rules, in an order, whose first match renames every name of ``pairs`` as it says.

    Names that stay may be in ``pairs`` too; no rule changes them. ``reserved`` names are used otherwise
    and fit no rule.
    """
    if not any(name != target for name, target in pairs.items()):
        return []
    heads = head_candidates(pairs)
    fronts = _fronts(pairs, reserved, heads)
    if fronts:
        left = _not_covered(pairs, fronts)
        heads = head_candidates(left) if any(n != t for n, t in left.items()) else []
    return _Fitting(pairs, reserved, [*fronts, *heads]).run()


def _fronts(pairs: Mapping[str, str], reserved: Collection[str], heads: list[Candidate]) -> list[Candidate]:
    """Rules ``**.gamma -> **.weight`` that save at least one of the head rules."""
    counts = Counter(_changed_end(name, target) for name, target in pairs.items() if name != target)
    possible = [end for end, n in counts.most_common(MAX_FRONTS) if end and n >= MIN_FRONT]
    if not possible or len(heads) < 2:
        return []
    winners = _Fitting(pairs, reserved, heads).winners()
    chosen: list[Candidate] = []
    for old, new, tail in possible:
        front = _front(old, new, tail)
        names = _covered(front, pairs, reserved)
        saved = sum(bool(won) and names.issuperset(won) for won in winners)
        if saved > 1:
            chosen.append(front)
            winners = [won for won in winners if not names.issuperset(won)]
    return chosen


def _changed_end(name: str, target: str) -> tuple[str, str, str] | None:
    """What differs behind the common beginning, and whether a last segment is carried over."""
    old, new = name.split("."), target.split(".")
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    old, new, tail = old[same:], new[same:], ""
    if len(old) > 1 and len(new) > 1 and old[-1] == new[-1]:
        old, new, tail = old[:-1], new[:-1], ".*"
    if not old or not new or len(old) > 3:
        return None
    return "." + ".".join(old), "." + ".".join(new), tail


def _front(old: str, new: str, tail: str) -> Candidate:
    (old_text, old_numbers), (new_text, new_numbers) = cut(old), cut(new)
    formula = formulas([(old_numbers, new_numbers)])[0]
    return Candidate(old_text, new_text, formula, tail, front="**")


def _covered(front: Candidate, pairs: Mapping[str, str], reserved: Collection[str]) -> set[str]:
    """The names that the rule renames; empty when it is wrong for one of them."""
    rule = front.rule
    if any(rule.apply(name) is not None for name in reserved):
        return set()
    names: set[str] = set()
    for name, target in pairs.items():
        new = rule.apply(name)
        if new is not None and new != target:
            return set()
        if new is not None:
            names.add(name)
    return names


def _not_covered(pairs: Mapping[str, str], fronts: Sequence[Candidate]) -> dict[str, str]:
    rules = [f.rule for f in fronts]
    return {n: t for n, t in pairs.items() if all(r.apply(n) is None for r in rules)}


class _Fitting:
    """Candidates are tried on every name; those that take too much are limited until all is right."""

    def __init__(
        self, pairs: Mapping[str, str], reserved: Collection[str], candidates: Sequence[Candidate]
    ) -> None:
        self.pairs = pairs
        self.reserved = reserved
        self.use(candidates)

    def use(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = sorted(candidates, key=lambda c: (c.front == "", -c.depth, c.free, str(c.old)))
        self.rules = [c.rule for c in self.candidates]
        self.index = FirstMatch.of(self.rules)
        self.fits: dict[str, list[int]] = {}

    def fitting(self, name: str) -> list[int]:
        """The rules that fit a name, most specific first."""
        return [position for position, _ in self.index.renamings(name)]

    def winners(self) -> list[list[str]]:
        """Per rule, the names that it renames."""
        won: list[list[str]] = [[] for _ in self.rules]
        for name in self.pairs:
            found = self.index.first(name)
            if found is not None:
                won[found[0]].append(name)
        return won

    def run(self) -> list[Renamed]:
        while wrong := self.wrong():
            # Families are wrong together, so a sample finds the rules that take too much.
            blamed = self.blame(wrong[:: 1 + len(wrong) // SAMPLE]) or self.blame(wrong)
            if not blamed:
                return self.by_name(wrong)
            narrower = (self.narrower(p, c, blamed.get(p)) for p, c in enumerate(self.candidates))
            self.use([c for candidates in narrower for c in candidates])
        return self.ordered(self.rules, self.fits)

    def wrong(self) -> list[str]:
        """Names that come out wrong; ``fits`` gets which rules fit each name that any does."""
        wrong: list[str] = []
        for name, target in self.pairs.items():
            found = list(self.index.renamings(name))
            if (found[0][1] if found else name) != target:
                wrong.append(name)
            if found:
                self.fits[name] = [position for position, _ in found]
        return wrong + [n for n in self.reserved if self.index.first(n) is not None]

    def blame(self, wrong: Sequence[str]) -> dict[int, list[str]]:
        """The rules that can be limited, with the wrong names that they fit."""
        blamed: dict[int, list[str]] = {}
        for name in wrong:
            for position in self.to_blame(name):
                blamed.setdefault(position, []).append(name)
        return blamed

    def to_blame(self, name: str) -> list[int]:
        """The rules before the right one that can still be limited."""
        found: list[int] = []
        for position in self.fitting(name):
            if self.rules[position].apply(name) == self.pairs.get(name):
                break
            if not self.candidates[position].exact:
                found.append(position)
        return found

    def narrower(self, position: int, old: Candidate, wrong: list[str] | None) -> list[Candidate]:
        if wrong is None:
            return [old]
        pattern = capture(self.rules[position].from_)
        bindings = [pattern.match(name) for name in wrong]
        return old.limited(b.indices for b in bindings if b is not None)

    def by_name(self, wrong: Sequence[str]) -> list[Renamed]:
        """One rule per name for what no family of rules gets right."""
        names = {n: None for n in wrong if n in self.pairs}
        hopeless = {p for n in wrong if n in self.reserved for p in self.fitting(n)}
        winners = self.winners()
        names.update((n, None) for p in hopeless for n in winners[p])
        special = [explicit(n, self.pairs[n]) for n in names]
        replaced = {rule.from_ for rule in special}
        rest = [r for p, r in enumerate(self.rules) if p not in hopeless and r.from_ not in replaced]
        rules = [*special, *rest]
        return self.ordered(rules, _all_fits(rules, self.pairs))

    def ordered(self, rules: Sequence[Rule], fits: Mapping[str, list[int]]) -> list[Renamed]:
        """The rules that are needed, as the checkpoint's keys come, exceptions before what they except."""
        return _in_key_order(rules, fits, _needed(rules, fits, self.pairs))


def _all_fits(rules: Sequence[Rule], pairs: Mapping[str, str]) -> dict[str, list[int]]:
    index = FirstMatch.of(rules)
    fits = {name: [position for position, _ in index.renamings(name)] for name in pairs}
    return {name: found for name, found in fits.items() if found}


def _needed(rules: Sequence[Rule], fits: Mapping[str, list[int]], pairs: Mapping[str, str]) -> set[int]:
    """Without the rules whose names come out right by the next rule that fits (or by none)."""
    won: dict[int, list[str]] = {}
    for name, found in fits.items():
        won.setdefault(found[0], []).append(name)
    needed = {p for found in fits.values() for p in found}
    for position in range(len(rules)):
        if position not in needed:
            continue
        mine = won.get(position, [])
        heirs = [next((p for p in fits[n] if p in needed and p != position), None) for n in mine]
        if all(_gives(rules, heir, n) == pairs[n] for heir, n in zip(heirs, mine, strict=True)):
            needed.discard(position)
            for heir, name in zip(heirs, mine, strict=True):
                if heir is not None:
                    won.setdefault(heir, []).append(name)
    return needed


def _gives(rules: Sequence[Rule], position: int | None, name: str) -> str | None:
    return name if position is None else rules[position].apply(name)


def _in_key_order(rules: Sequence[Rule], fits: Mapping[str, list[int]], needed: set[int]) -> list[Renamed]:
    first: dict[int, int] = {}
    names: dict[int, list[str]] = {p: [] for p in needed}
    after: dict[int, set[int]] = {p: set() for p in needed}
    waits: Counter[int] = Counter()
    for place, (name, found) in enumerate(fits.items()):
        winner, *others = (p for p in found if p in needed) if any(p in needed for p in found) else (None,)
        if winner is None:
            continue
        names[winner].append(name)
        first.setdefault(winner, place)
        for other in others:
            if other not in after[winner]:
                after[winner].add(other)
                waits[other] += 1
    ready = [(first.get(p, len(fits)), p) for p in needed if not waits[p]]
    heapq.heapify(ready)
    done: list[Renamed] = []
    while ready:
        _, position = heapq.heappop(ready)
        if names[position]:
            done.append(Renamed(rules[position], tuple(names[position])))
        for other in after[position]:
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(ready, (first.get(other, len(fits)), other))
    return done
