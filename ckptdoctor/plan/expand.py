"""From a plan to one entry per key of both trees, checked from both sides. No tensor is touched."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_

from ckptdoctor.casts import CastClass, cast_class, worst
from ckptdoctor.errors import PlanError, StalePlanError, UndecidedError
from ckptdoctor.keys import printable, select_all
from ckptdoctor.plan.fills import Fill
from ckptdoctor.plan.model import Cast, Drop, Keep, Place, Plan, Reinit, Tie
from ckptdoctor.plan.names import Carried, carry, first_rules, strip
from ckptdoctor.trees import ParamTree


@dataclass(frozen=True)
class Expansion:
    """A plan key by key: ``fills`` for every key of the model, in its order, and ``unused`` for the rest."""

    plan: Plan
    fills: Mapping[str, Fill]
    unused: Mapping[str, str]  # checkpoint key -> why
    copies: Mapping[str, str]  # unused key -> the key it has to repeat
    trees: tuple[ParamTree, ParamTree] = field(compare=False, repr=False)  # those it was worked out for


def expand(
    plan: Plan, source_tree: ParamTree, target_tree: ParamTree, known: Expansion | None = None
) -> Expansion:
    """Work the plan out for these two trees, unless it is the very one that was ``known`` to give something.

    Every key of the model is filled exactly once, every key of the checkpoint is used or dropped, every
    count, shape and dtype is checked. Raises :class:`StalePlanError` when a tree is not the one that the
    plan was made for, :class:`UndecidedError` when questions are open, :class:`PlanError` otherwise.
    """
    made = known if known is not None and known.plan is plan else None
    if made is None or not all(map(is_, made.trees, (source_tree, target_tree))):
        check_digests(plan, source_tree, target_tree)  # the very same trees have the same digests
    if not plan.complete:
        raise UndecidedError(_open_text(plan))
    if made is not None:
        return made
    return _Expander(plan, source_tree, target_tree).run(())


def expand_decided(
    plan: Plan, source_tree: ParamTree, target_tree: ParamTree, skip: Collection[str] = ()
) -> Expansion:
    """Like :func:`expand`, open questions allowed, for the checkpoint without the keys ``skip``."""
    return _Expander(plan, source_tree, target_tree).run(skip)


def check_digests(plan: Plan, source_tree: ParamTree, target_tree: ParamTree) -> None:
    """Raise :class:`StalePlanError` unless the plan was made for exactly these trees."""
    sides = (
        ("checkpoint", plan.source.file, plan.source.tree, plan.source.keys, source_tree),
        ("model", plan.target.model, plan.target.tree, plan.target.keys, target_tree),
    )
    for side, label, digest, keys, tree in sides:
        if digest != tree.digest or keys != len(tree):
            raise StalePlanError(
                f"the plan is for another {side}: `{printable(label)}`, {keys} keys, tree {digest[:19]}; "
                f"this one has {len(tree)} keys, tree {tree.digest[:19]}. "
                "Make a new plan with `ckptdoctor plan`"
            )


def _open_text(plan: Plan) -> str:
    lines = [
        f"{plan.result.open} keys of the model and {plan.result.unexplained} of the checkpoint are undecided"
    ]
    for question in plan.question:
        flags = f" ({' or '.join(question.flags)})" if question.flags else ""
        lines.append(f"  {printable(question.title)}{printable(flags)}")
    return "\n".join(lines)


def some(keys: Iterable[str], limit: int = 3) -> str:
    """A few of the keys, quoted, and how many more there are."""
    shown = list(keys)
    text = ", ".join(f"`{printable(k)}`" for k in shown[:limit])
    return text + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


class _Expander:
    def __init__(self, plan: Plan, source: ParamTree, target: ParamTree) -> None:
        self.plan = plan
        self.source = source
        self.target = target
        self.keys = set(target.specs)
        self.fills: dict[str, Fill] = {}
        self.counts = dict.fromkeys(range(len(plan.step)), 0)

    def run(self, skip: Collection[str]) -> Expansion:
        names = strip(self.plan, self.source.specs, self.counts)
        names = {n: k for n, k in names.items() if k not in skip} if skip else names
        carried = carry(self.plan.step, names)
        for step, fills in carried.fills:
            self.fill_all(fills, step)
        self.own_values()
        self.ties()
        self.check_shapes()
        self.casts()
        self.places()
        unused = self.unused(carried)
        self.check_counts()
        self.check_complete(carried, unused)
        ordered = {k: self.fills[k] for k in self.target.specs if k in self.fills}
        copies = self.copies(carried, names)
        return Expansion(self.plan, ordered, unused, copies, (self.source, self.target))

    def fail(self, step: int | None, text: str) -> PlanError:
        where = "plan" if step is None else f"plan step {step + 1} ({self.plan.step[step].op})"
        return PlanError(f"{where}: {text}")

    def fill(self, fill: Fill, step: int | None) -> None:
        if fill.target not in self.target.specs:
            raise self.fail(
                step, f"the model has no key {some([fill.target])}, which {some(fill.sources)} would fill"
            )
        before = self.fills.get(fill.target)
        if before is not None:
            already = some(before.sources) if before.sources else f"a `{before.kind}` step"
            raise self.fail(step, f"{some([fill.target])} would be filled twice, first by {already}")
        self.fills[fill.target] = fill
        if step is not None:
            self.counts[step] += 1

    def fill_all(self, fills: Sequence[Fill], step: int | None) -> None:
        new = {fill.target: fill for fill in fills}
        if len(new) < len(fills) or not new.keys() <= self.keys or not new.keys().isdisjoint(self.fills):
            for fill in fills:
                self.fill(fill, step)
            return
        self.fills.update(new)
        if step is not None:
            self.counts[step] += len(new)

    def own_values(self) -> None:
        for number, step in enumerate(self.plan.step):
            if isinstance(step, Keep | Reinit):
                for key in select_all(step.to, self.target.specs):
                    self.fill(Fill(key, step.op), number)

    def ties(self) -> None:
        rules = [(n, s) for n, s in enumerate(self.plan.step) if isinstance(s, Tie)]
        if not rules:
            return
        group = {k: i for i, g in enumerate(self.target.ties) for k in g}
        find = first_rules(rules)
        for key in list(self.fills):
            for number, other in find(key):
                anchor = self.fills[key]
                if anchor.kind != "load" or group.get(key, -1) != group.get(other, -2):
                    raise self.fail(
                        number, f"{some([other])} is not tied to a loaded {some([key])} in the model"
                    )
                self.fill(Fill(other, "tie", anchor.sources, anchor.ops, tied_to=key), number)

    def check_shapes(self) -> None:
        sources, targets = self.source.shapes, self.target.shapes
        for fill in self.fills.values():
            if fill.kind != "load":
                continue
            shape = targets[fill.target]
            if not fill.ops and len(fill.sources) == 1 and sources[fill.sources[0]] == shape:
                continue
            found = out_shape(fill.ops, [sources[k] for k in fill.sources])
            if found != shape:
                shapes = f"gives shape {list(found)}, {some([fill.target])} has {list(shape)}"
                raise self.fail(None, f"{some(fill.sources)} {shapes}")

    def casts(self) -> None:
        if len(self.source.dtypes | self.target.dtypes) == 1 and not any(
            isinstance(step, Cast) for step in self.plan.step
        ):
            return
        loaded = [k for k, f in self.fills.items() if f.kind == "load"]
        for number, step in enumerate(self.plan.step):
            if isinstance(step, Cast):
                for key in select_all(step.to, loaded):
                    self.cast(number, step, key)
        for key in loaded:
            fill = self.fills[key]
            if not fill.cast and needed_cast(fill, self.source, self.target) is not None:
                raise self.fail(None, f"{some([key])} changes dtype and no cast step says so")

    def cast(self, number: int, step: Cast, key: str) -> None:
        fill = self.fills[key]
        needed = needed_cast(fill, self.source, self.target)
        if fill.cast or needed != (step.dtype_from, step.dtype_to, step.class_):
            stated = f"{printable(step.dtype_from)} to {printable(step.dtype_to)} ({step.class_})"
            is_ = "no cast" if needed is None else f"{needed[0]} to {needed[1]} ({needed[2]})"
            raise self.fail(number, f"says {stated} for {some([key])}, which needs {is_}")
        self.fills[key] = Fill(key, "load", fill.sources, fill.ops, cast=step.class_)
        self.counts[number] += 1

    def places(self) -> None:
        for number, step in enumerate(self.plan.step):
            if isinstance(step, Place):
                found = sum(self.source.devices[tag] for tag in set(step.devices))
                # Device tags are no part of a tree: the same checkpoint saved again from the CPU has none.
                self.counts[number] = found or step.keys

    def copies(self, carried: Carried, names: Mapping[str, str]) -> dict[str, str]:
        """What is dropped as a copy, by the checkpoint's own keys."""
        found: dict[str, str] = {}
        for number, key in carried.dropped:
            step = self.plan.step[number]
            if isinstance(step, Drop) and step.equals is not None:
                if step.equals not in names:
                    raise self.fail(number, f"`{printable(step.equals)}` is no key of the checkpoint")
                found[key] = names[step.equals]
        return found

    def unused(self, carried: Carried) -> dict[str, str]:
        unused: dict[str, str] = {}
        for number, key in carried.dropped:
            step = self.plan.step[number]
            assert isinstance(step, Drop)
            unused[key] = step.why or "dropped by the plan"
            self.counts[number] += 1
        return unused

    def check_counts(self) -> None:
        for number, step in enumerate(self.plan.step):
            if self.counts[number] != step.keys:
                raise self.fail(number, f"says {step.keys} keys, and it is {self.counts[number]}")

    def check_complete(self, carried: Carried, unused: Mapping[str, str]) -> None:
        kinds: list[str] = [f.kind for f in self.fills.values()]
        result = self.plan.result
        open_ = [k for k in self.target.specs if k not in self.fills]
        if len(open_) != result.open:
            raise self.fail(None, f"nothing fills {some(open_)} of the model")
        tally: Sequence[tuple[str, int, int]] = (
            ("loaded", result.loaded, kinds.count("load")),
            ("unchanged", result.unchanged, carried.unchanged),
            ("kept", result.kept, kinds.count("keep")),
            ("reinitialised", result.reinitialised, kinds.count("reinit")),
            ("tied", result.tied, kinds.count("tie")),
            ("unused", result.unused, len(unused)),
        )
        for name, stated, found in tally:
            if stated != found:
                raise self.fail(None, f"result says {stated} {name}, and it is {found}")


def out_shape(ops: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape after the ops. Raises :class:`PlanError` when they do not fit."""
    if not ops and len(shapes) == 1:
        return tuple(shapes[0])
    from ckptdoctor.ops import parse_chain

    return tuple(parse_chain(ops).out_shape(shapes))


def needed_cast(fill: Fill, source: ParamTree, target: ParamTree) -> tuple[str, str, CastClass] | None:
    """``(from, to, class)`` when the dtype of a loaded key changes; several dtypes are joined by ``+``."""
    to = target.specs[fill.target].dtype
    if len(fill.sources) == 1 and source.specs[fill.sources[0]].dtype == to:
        return None
    dtypes = sorted({source[k].dtype for k in fill.sources})
    if dtypes == [to]:
        return None
    return "+".join(dtypes), to, worst([cast_class(d, to) for d in dtypes])
