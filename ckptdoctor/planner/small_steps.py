"""Strip, tie, cast and place steps."""

from __future__ import annotations

from collections.abc import Mapping

from ckptdoctor.align.model import Strip
from ckptdoctor.casts import CastClass
from ckptdoctor.keys import Rule, cover, natural_key
from ckptdoctor.keys.grammar import escape
from ckptdoctor.plan.expand import needed_cast
from ckptdoctor.plan.fills import Fill
from ckptdoctor.plan.model import Cast, Place, Safety, StripPrefix, StripSegment, Tie
from ckptdoctor.planner.candidates import Literals, cut
from ckptdoctor.planner.indices import Row, formulas, pattern, variable_names
from ckptdoctor.trees import ParamTree

# What a cast does to values is written in its step; these three lose so much that nothing is safe.
_HARMFUL = ("range", "truncation", "payload")


def strip_step(strip: Strip) -> StripPrefix | StripSegment:
    """The step that removes a wrapper's segment."""
    why = f"written by {strip.wrapper}" if strip.wrapper else "no key of the model has it"
    if strip.anywhere:
        return StripSegment(segment=strip.segment, keys=max(strip.count, 1), why=why)
    return StripPrefix(prefix=strip.segment + ".", keys=max(strip.count, 1), why=why)


def tie_steps(fills: Mapping[str, Fill], *, literal: bool) -> list[Tie]:
    """Tie steps, joined over numbers unless ``literal``."""
    rules: list[tuple[Rule, int]] = []
    families: dict[tuple[Literals, Literals], list[Row]] = {}
    for fill in fills.values():
        if fill.kind != "tie":
            continue
        (old, old_numbers), (new, new_numbers) = cut(fill.tied_to), cut(fill.target)
        if literal:
            rules.append((Rule(escape(fill.tied_to), escape(fill.target)), 1))
        else:
            families.setdefault((old, new), []).append((old_numbers, new_numbers))
    for (old, new), rows in families.items():
        for formula in formulas(rows):
            names = variable_names(formula)
            sides = pattern(old, formula.old, names, {}), pattern(new, formula.new, names, {})
            rules.append((Rule(*sides), len(formula.rows)))
    return [Tie(from_=r.from_, to=r.to, keys=n, why="one tensor in the model") for r, n in rules]


def cast_steps(fills: Mapping[str, Fill], source: ParamTree, target: ParamTree) -> list[Cast]:
    """One cast step for each pair of dtypes."""
    groups: dict[tuple[str, str, CastClass], list[str]] = {}
    loaded = [k for k, f in fills.items() if f.kind == "load"]
    for key in loaded:
        needed = needed_cast(fills[key], source, target)
        if needed is not None:
            groups.setdefault(needed, []).append(key)
    steps: list[Cast] = []
    for (dtype_from, dtype_to, class_), keys in groups.items():
        safety: Safety = "unsafe" if class_ in _HARMFUL else "safe"
        steps.append(
            Cast(
                to=tuple(cover(keys, loaded)),
                dtype_from=dtype_from,
                dtype_to=dtype_to,
                class_=class_,
                keys=len(keys),
                why="the model's dtype",
                safety=safety,
            )
        )
    return steps


def place_steps(source: ParamTree) -> list[Place]:
    """One step that names the devices other than the CPU that tensors were saved on."""
    devices = {tag: count for tag, count in source.devices.items() if tag not in ("cpu", "")}
    if not devices:
        return []
    tags = tuple(sorted(devices, key=natural_key))
    return [Place(devices=tags, keys=sum(devices.values()), why="tensors end where the model is")]
