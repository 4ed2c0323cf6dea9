"""How the steps of a plan carry the checkpoint's names over to the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import ne

from ckptdoctor.errors import PlanError
from ckptdoctor.keys import FirstMatch, printable, select_all
from ckptdoctor.keys.capture import Binding, capture
from ckptdoctor.plan.fills import Fill, copied
from ckptdoctor.plan.model import Drop, Plan, Rename, Step, StripPrefix, StripSegment, Tie, Transform


@dataclass
class Carried:
    """What became of every name: fills by step, dropped checkpoint keys, how many kept their name."""

    fills: list[tuple[int | None, list[Fill]]] = field(default_factory=list)
    dropped: list[tuple[int, str]] = field(default_factory=list)
    unchanged: int = 0


def strip(plan: Plan, keys: Iterable[str], counts: dict[int, int]) -> dict[str, str]:
    """``{name: checkpoint key}`` after the strip steps; ``counts`` gets how many names each one changed."""
    names = {k: k for k in keys}
    for number, step in enumerate(plan.step):
        if isinstance(step, StripPrefix | StripSegment):
            names, counts[number] = strip_once(step, names)
    return names


def strip_once(step: StripPrefix | StripSegment, names: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """The names after one strip step, and how many changed. Raises :class:`PlanError` if two become one."""
    found = step.rewrite(names)
    stripped = dict(zip(found, names.values(), strict=True))
    if len(stripped) < len(found):
        _refuse_doubles(step, found, names)
    return stripped, sum(map(ne, found, names))


def _refuse_doubles(step: Step, found: Sequence[str], names: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for new, key in zip(found, names.values(), strict=True):
        if first.setdefault(new, key) is not key:
            both = f"`{printable(first[new])}` and `{printable(key)}`"
            raise PlanError(f"plan step {step.op}: {both} would both become `{printable(new)}`")


def carry(steps: Sequence[Step], names: Mapping[str, str]) -> Carried:
    """Apply renames, transforms and drops to all names at once."""
    return _Carrier(steps, names).run()


class _Carrier:
    def __init__(self, steps: Sequence[Step], names: Mapping[str, str]) -> None:
        self.steps = steps
        self.names = names
        self.carried = Carried()
        self.by_step: dict[int, list[Fill]] = {}
        self.owned: dict[str, int] = {}  # names taken by transforms
        self.in_sets: set[str] = set()

    def run(self) -> Carried:
        shared = self.shared()
        drops = self.drops()
        patterns, to, origin = self.patterns()
        if not patterns and not drops and not shared:
            return self.as_they_are()
        index = FirstMatch(patterns, to) if patterns else None
        for name, key in self.names.items():
            self.one(name, key, drops.get(name), index, patterns, origin, shared)
        self.check_sets()
        self.carried.fills += sorted(self.by_step.items())
        return self.carried

    def as_they_are(self) -> Carried:
        fills = copied(self.names, zip(self.names.values(), strict=True))
        return Carried([(None, fills)] if fills else [], [], len(fills))

    def drops(self) -> dict[str, int]:
        first: dict[str, int] = {}
        for number, step in enumerate(self.steps):
            if isinstance(step, Drop):
                for name in select_all(step.from_, self.names):
                    first.setdefault(name, number)
        return first

    def patterns(self) -> tuple[list[str], list[str], list[tuple[int, int]]]:
        """All patterns in order, what each makes of a name, and its step and place among the step's sources.

        A transform's patterns make nothing new by themselves.
        """
        patterns: list[str] = []
        to: list[str] = []
        origin: list[tuple[int, int]] = []
        for number, step in enumerate(self.steps):
            texts: list[str] = []
            if isinstance(step, Rename):
                texts = [step.from_]
            elif isinstance(step, Transform) and not step.shared:
                texts = step.sources
            patterns += texts
            to += [step.to] if isinstance(step, Rename) else texts
            origin += [(number, place) for place in range(len(texts))]
        return patterns, to, origin

    def one(
        self,
        name: str,
        key: str,
        drop: int | None,
        index: FirstMatch | None,
        patterns: list[str],
        origin: list[tuple[int, int]],
        shared: set[str],
    ) -> None:
        """Find the first step that fits this name, and do what it says."""
        for position, new in index.renamings(name) if index else ():
            number, place = origin[position]
            if drop is not None and drop < number:
                break
            if isinstance(self.steps[number], Rename):
                return self.add(number, new, (key,), ())
            binding = capture(patterns[position]).match(name)
            if binding is not None:
                return self.take(number, place, name, binding)
        if drop is not None:
            self.carried.dropped.append((drop, key))
        elif name not in shared:
            self.add(None, name, (key,), ())
            self.carried.unchanged += 1

    def take(self, number: int, place: int, name: str, binding: Binding) -> None:
        step = self.steps[number]
        assert isinstance(step, Transform)
        self.owned[name] = number
        if place == 0:
            self.in_sets.update(self.transform(number, step, binding))

    def transform(self, number: int, step: Transform, binding: Binding) -> list[str]:
        names = [self.part(number, p, binding) for p in step.sources]
        missing = [n for n in names if n not in self.names]
        if missing:
            raise PlanError(
                f"plan step {number + 1} (transform): the checkpoint has no `{printable(missing[0])}`"
            )
        keys = tuple(self.names[n] for n in names)
        if len(step.to) != len(step.apply):
            lengths = f"`to` has {len(step.to)} entries and `apply` {len(step.apply)}"
            raise PlanError(f"plan step {number + 1} (transform): {lengths}")
        for pattern, chain in zip(step.to, step.apply, strict=True):
            ops = tuple(chain.split("|")) if chain != "copy" else ()
            self.add(number, self.part(number, pattern, binding), keys, ops)
        return names

    def part(self, number: int, pattern: str, binding: Binding) -> str:
        name = capture(pattern).fill(binding)
        if name is None:
            raise PlanError(f"plan step {number + 1} (transform): `{printable(pattern)}` has no such index")
        return name

    def shared(self) -> set[str]:
        used: set[str] = set()
        for number, step in enumerate(self.steps):
            if isinstance(step, Transform) and step.shared:
                for _, binding in _matching(step.sources[0], self.names):
                    used.update(self.transform(number, step, binding))
        return used

    def check_sets(self) -> None:
        lonely = [n for n in self.owned if n not in self.in_sets]
        if lonely:
            number = self.owned[lonely[0]]
            where = f"plan step {number + 1} (transform)"
            raise PlanError(f"{where}: `{printable(lonely[0])}` fits, but is part of no complete set")

    def add(self, number: int | None, target: str, keys: tuple[str, ...], ops: tuple[str, ...]) -> None:
        fill = Fill(target, "load", keys, ops)
        if number is None:
            if not self.carried.fills:
                self.carried.fills.append((None, []))
            self.carried.fills[0][1].append(fill)
        else:
            self.by_step.setdefault(number, []).append(fill)


def _matching(pattern: str, names: Iterable[str]) -> Iterator[tuple[str, Binding]]:
    compiled = capture(pattern)
    for name in names:
        binding = compiled.match(name)
        if binding is not None:
            yield name, binding


def first_rules(ties: Sequence[tuple[int, Tie]]) -> Callable[[str], list[tuple[int, str]]]:
    """A function from one of the model's keys to the ``(step, key)`` that tie steps tie to it."""
    index = FirstMatch([step.from_ for _, step in ties], [step.to for _, step in ties])

    def find(key: str) -> list[tuple[int, str]]:
        return [(ties[position][0], other) for position, other in index.renamings(key)]

    return find
