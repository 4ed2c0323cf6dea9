"""The plan back: from the repaired file to the first file's tree."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdoctor.align.model import Alignment, Match, Unused
from ckptdoctor.casts import cast_class
from ckptdoctor.errors import PlanError
from ckptdoctor.keys import printable
from ckptdoctor.plan.expand import expand
from ckptdoctor.plan.fills import Fill
from ckptdoctor.plan.model import Plan
from ckptdoctor.planner.make import make_plan
from ckptdoctor.trees import ParamTree

WHY = "the way back"


def reverse(plan: Plan, source_tree: ParamTree, target_tree: ParamTree) -> Plan:
    """The plan that takes the repaired file (which has ``target_tree``) back to ``source_tree``.

    Raises :class:`PlanError` naming the first thing that is lost for good: a dropped tensor, a cast that is
    not lossless, an op without inverse. Model keys that the first file did not have are dropped.
    """
    expansion = expand(plan, source_tree, target_tree)
    if expansion.unused:
        key = next(iter(expansion.unused))
        raise PlanError(f"no way back: `{printable(key)}` was dropped ({printable(expansion.unused[key])})")
    loaded = [f for f in expansion.fills.values() if f.kind == "load"]
    for fill in loaded:
        _check_cast(fill, source_tree, target_tree)
    matches = _matches(loaded, source_tree)
    used = {k for m in matches.values() for k in m.sources}
    unused = {
        key: Unused(key, "tied" if fill.kind == "tie" else "not in the first file", True)
        for key, fill in expansion.fills.items()
        if key not in used
    }
    return make_plan(
        Alignment({k: matches[k] for k in source_tree.specs}, unused),
        target_tree,
        source_tree,
        file=plan.target.model,
        model_label=plan.source.file,
    )


def _check_cast(fill: Fill, source: ParamTree, target: ParamTree) -> None:
    to = target[fill.target].dtype
    for key in fill.sources:
        kind = cast_class(source[key].dtype, to)
        if kind != "lossless":
            raise PlanError(
                f"no way back: `{printable(key)}` was cast from {source[key].dtype} to {to} ({kind})"
            )


def _matches(loaded: Sequence[Fill], source: ParamTree) -> dict[str, Match]:
    """For each key of the first file, what makes it again."""
    groups: dict[tuple[str, ...], list[Fill]] = {}
    for fill in loaded:
        groups.setdefault(fill.sources, []).append(fill)
    matches: dict[str, Match] = {}
    for keys, fills in sorted(groups.items(), key=lambda item: len(item[0])):
        if all(k in matches for k in keys):
            continue  # a second use of the same tensors
        for match in _undo(keys, fills, source):
            matches.setdefault(match.target, match)
    return matches


def _undo(keys: tuple[str, ...], fills: Sequence[Fill], source: ParamTree) -> list[Match]:
    whole = next((f for f in fills if not f.ops), None)
    if len(keys) == 1 and whole is not None:
        return [Match(keys[0], "safe", (whole.target,), (), (WHY,))]
    from ckptdoctor.ops import parse_chain, rejoin

    shapes = [source[k].shape for k in keys]
    chains = [parse_chain(f.ops) for f in fills]
    for fill, chain in zip(fills, chains, strict=True):
        if chain.lossless:
            back = chain.inverse(shapes)
            return [_match(k, (fill.target,), c.texts) for k, c in zip(keys, back, strict=True)]
    if len(keys) > 1:
        raise PlanError(f"no way back: `{chains[0]}` does not keep all of `{printable(keys[0])}`")
    order, chain = rejoin(chains, shapes[0])
    return [_match(keys[0], tuple(fills[i].target for i in order), chain.texts)]


def _match(target: str, sources: tuple[str, ...], ops: tuple[str, ...]) -> Match:
    return Match(target, "safe", sources, ops, (WHY,))
