"""From an alignment to a plan: strips, drops, transforms, renames, ties, own values, casts, places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptdoctor.align.model import Alignment, Match, Strip
from ckptdoctor.columns import tally
from ckptdoctor.decisions import Decision
from ckptdoctor.errors import PlanError
from ckptdoctor.keys import cover, printable
from ckptdoctor.plan.checked import late
from ckptdoctor.plan.expand import Expansion, expand_decided
from ckptdoctor.plan.fills import Fill
from ckptdoctor.plan.model import (
    Drop,
    Keep,
    OpenQuestion,
    Plan,
    Reinit,
    Rename,
    Result,
    Safety,
    SourceRef,
    Step,
    TargetRef,
    Transform,
)
from ckptdoctor.plan.names import strip_once
from ckptdoctor.planner.candidates import explicit
from ckptdoctor.planner.renames import Renamed, renames
from ckptdoctor.planner.small_steps import cast_steps, place_steps, strip_step, tie_steps
from ckptdoctor.planner.transforms import AS_IS, Set, by_sharing, literal_steps, sets, transform_steps
from ckptdoctor.planner.wanted import same_fill, wanted_fills, why
from ckptdoctor.trees import ParamTree


def make_plan(alignment: Alignment, source: ParamTree, target: ParamTree, **how: Any) -> Plan:
    """The plan of :func:`make_expanded`, with the same arguments."""
    return make_expanded(alignment, source, target, **how).plan


def make_expanded(
    alignment: Alignment,
    source: ParamTree,
    target: ParamTree,
    *,
    file: str,
    state_dict_path: str = "",
    model_label: str = "",
    decisions: Sequence[Decision] = (),
) -> Expansion:
    """The fewest readable steps that reproduce the alignment exactly, as a plan and worked out.

    What is undecided or missing in the alignment is left out and counted as open; such a plan is not
    ``complete``. The plan is checked by working it out, which is what :func:`ckptdoctor.plan.expand` gives
    for these trees where it is complete. Raises :class:`PlanError` when the alignment contradicts itself
    (two sources for one tensor, shapes that do not fit).
    """
    head = (
        SourceRef(file=file, state_dict=state_dict_path, tree=late(lambda: source.digest), keys=len(source)),
        TargetRef(model=model_label, tree=late(lambda: target.digest), keys=len(target)),
    )
    return _Parts(alignment, source, target, tuple(decisions)).best(head)


Way = Callable[[Sequence[Set], Sequence[Set]], list[Transform]]


def _free(found: Sequence[Set], shared: Sequence[Set]) -> list[Transform]:
    return transform_steps(found, shared, limited=False)


def _limited(found: Sequence[Set], shared: Sequence[Set]) -> list[Transform]:
    return transform_steps(found, shared, limited=True)


@dataclass(frozen=True, slots=True)
class Moves:
    """Transform and rename steps, and how many names stay as they are."""

    steps: list[Step]
    unchanged: int


@dataclass
class _Parts:
    alignment: Alignment
    source: ParamTree
    target: ParamTree
    decisions: tuple[Decision, ...]
    fills: dict[str, Fill] = field(default_factory=dict)

    def best(self, head: tuple[SourceRef, TargetRef]) -> Expansion:
        """The most readable of the ways to write the plan that gives exactly the alignment."""
        self.fills = wanted_fills(self.alignment, self.target, self.decisions)
        problem: PlanError | None = None
        for strips in (self.alignment.strips, ()):
            for way in (_free, _limited, literal_steps):
                try:
                    return self.checked(self.plan(head, strips, way))
                except PlanError as error:
                    problem = problem or error
            if not strips:
                break
        assert problem is not None
        raise problem

    def checked(self, plan: Plan) -> Expansion:
        """The plan worked out, which is the alignment."""
        skip = {k for k, u in self.alignment.unused.items() if not u.decided}
        made = expand_decided(plan, self.source, self.target, skip)
        for key, want in self.fills.items() if made.fills != self.fills else ():
            if not same_fill(made, key, want):
                raise PlanError(f"the steps found for `{printable(key)}` do not give what was matched")
        return made

    def plan(self, head: tuple[SourceRef, TargetRef], strips: Sequence[Strip], way: Way) -> Plan:
        strip_steps, names = self.strip(strips)
        moves = self.moves(names, way)
        steps: list[Step] = [*strip_steps, *self.drops(names), *moves.steps]
        steps += tie_steps(self.fills, literal=way is literal_steps)
        steps += self.own_values()
        if len(self.source.dtypes | self.target.dtypes) > 1:
            steps += cast_steps(self.fills, self.source, self.target)
        steps += place_steps(self.source)
        return Plan(
            source=head[0],
            target=head[1],
            step=tuple(steps),
            decision=tuple(map(str, self.decisions)),
            warning=self.alignment.warnings,
            question=tuple(
                OpenQuestion(kind=q.kind, title=q.title, flags=tuple(flag for flag, _ in q.flags))
                for q in self.alignment.questions
            ),
            result=self.result(moves.unchanged),
        )

    def strip(self, strips: Sequence[Strip]) -> tuple[list[Step], dict[str, str]]:
        """Strip steps, and ``{name: checkpoint key}`` after them; no steps when they do not work out."""
        names = {k: k for k in self.source.specs}
        steps: list[Step] = []
        for strip in strips:
            step = strip_step(strip)
            names, changed = strip_once(step, names)
            if changed != strip.count:
                said = f"{strip.count} keys said to be under it"
                raise PlanError(f"stripping `{printable(strip.segment)}` changes {changed} names; {said}")
            if changed:
                steps.append(step)
        return steps, names

    def moves(self, names: Mapping[str, str], way: Way) -> Moves:
        """Renames and transforms for everything that is loaded."""
        name_of = {key: name for name, key in names.items()}
        loaded = [self.alignment.matches[k] for k, f in self.fills.items() if f.kind == "load"]
        alone, others = _alone(loaded)
        if not others and all(name_of[m.sources[0]] == m.target for m in alone):
            return Moves([], len(alone))  # after the strips all have the model's names
        exclusive, shared = by_sharing(sets(others, name_of, self.source))
        plain = {name_of[m.sources[0]]: m.target for m in alone}
        plain |= {s.sources[0]: s.made[0][0] for s in exclusive if s.plain}
        pairs = {n: plain[n] for n in names if n in plain}
        taken = {n for s in shared for n in s.sources} - {n for s in exclusive for n in s.sources}
        made = renames(pairs, taken)
        # What a shared transform reads and what keeps its name as well is said explicitly.
        moved = {n for r in made for n in r.names}
        read = {n for s in shared for n in s.sources if n in pairs and n not in moved}
        made = [Renamed(explicit(n, n), (n,)) for n in sorted(read)] + made
        transforms = way([s for s in exclusive if not s.plain], shared)
        steps: list[Step] = list(transforms)
        steps += [self.rename(r, pairs) for r in made]
        return Moves(steps, len(pairs) - sum(len(r.names) for r in made))

    def rename(self, renamed: Renamed, pairs: Mapping[str, str]) -> Rename:
        found = [self.alignment.matches[pairs[n]] for n in renamed.names]
        safety: Safety = "safe" if all(m.status == "safe" for m in found) else "unsafe"
        rule = renamed.rule
        return Rename(from_=rule.from_, to=rule.to, keys=len(found), why=why(found), safety=safety)

    def drops(self, names: Mapping[str, str]) -> list[Drop]:
        unused = self.alignment.unused
        if not unused:
            return []
        decided = {n: k for n, k in names.items() if k not in unused or unused[k].decided}
        name_of = {key: name for name, key in names.items()}
        reasons: dict[tuple[str, str | None], list[str]] = {}
        for name, key in decided.items():
            if key in unused:
                reasons.setdefault((unused[key].reason, name_of.get(unused[key].equals)), []).append(name)
        return [
            Drop(from_=tuple(cover(dropped, decided)), keys=len(dropped), why=reason, equals=equals)
            for (reason, equals), dropped in reasons.items()
        ]

    def own_values(self) -> list[Step]:
        steps: list[Step] = []
        own = [fill for fill in self.fills.values() if fill.kind in ("keep", "reinit")]
        for kind in (Keep, Reinit):
            reasons: dict[str, list[str]] = {}
            for fill in own:
                if fill.kind == ("keep" if kind is Keep else "reinit"):
                    reasons.setdefault(why([self.alignment.matches[fill.target]]), []).append(fill.target)
            for reason, keys in reasons.items():
                steps.append(kind(to=tuple(cover(keys, self.target.specs)), keys=len(keys), why=reason))
        return steps

    def result(self, unchanged: int) -> Result:
        kinds = tally(f.kind for f in self.fills.values())
        unused = tally(u.decided for u in self.alignment.unused.values())
        return Result(
            loaded=kinds["load"],
            unchanged=unchanged,
            kept=kinds["keep"],
            reinitialised=kinds["reinit"],
            tied=kinds["tie"],
            unused=unused[True],
            open=len(self.target) - len(self.fills),
            unexplained=unused[False],
        )


def _alone(loaded: Sequence[Match]) -> tuple[list[Match], list[Match]]:
    """The matches of one tensor that fills one as it is, and all others."""
    plain = all(len(m.sources) == 1 and m.ops in AS_IS for m in loaded)
    if plain and len({m.sources for m in loaded}) == len(loaded):
        return list(loaded), []
    users = tally(s for m in loaded for s in m.sources)
    alone: list[Match] = []
    others: list[Match] = []
    for match in loaded:
        simple = len(match.sources) == 1 and match.ops in AS_IS and users[match.sources[0]] == 1
        (alone if simple else others).append(match)
    return alone, others
