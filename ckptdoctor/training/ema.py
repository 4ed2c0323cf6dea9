"""Decisions for averaged weights: which state dict they are, and what its keys are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptdoctor.decisions import Decision
from ckptdoctor.errors import UndecidedError
from ckptdoctor.training.average import COUNTERS

if TYPE_CHECKING:
    from ckptdoctor.training.source import Training
    from ckptdoctor.trees import ParamTree


def averaged(training: Training, decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """The decisions, with the choice of the averaged state dict that the layout's table names."""
    paths = training.paths("ema")
    if not paths:
        raise UndecidedError(f"{training.file}: no averaged weights (EMA) found for ema=; leave it out")
    return (*(d for d in decisions if d.kind != "choose"), Decision("choose", paths[0]))


def for_average(
    training: Training, decisions: tuple[Decision, ...], target: ParamTree
) -> tuple[Decision, ...]:
    """Decisions that name the model's keys, under the ``module.`` of AveragedModel where that is there."""
    paths = [d.value for d in decisions if d.kind == "choose"]
    trees = [s.tree for s in training.archive.state_dicts if s.path in paths]
    source = _front(trees[0]) if trees else ""
    front = _front(target)

    def under(decision: Decision) -> Decision:
        if decision.kind == "rename":
            old, _, new = decision.value.partition("=")
            return Decision("rename", f"{source}{old}={front}{new}")
        before = {"reinit": front, "op": front, "drop": source}.get(decision.kind, "")
        return Decision(decision.kind, before + decision.value)

    return tuple(map(under, decisions))


def without_counters(
    training: Training, decisions: tuple[Decision, ...], target: ParamTree
) -> list[Decision]:
    """An averaged state dict counts its updates in an entry of its own, which is no part of the network."""
    paths = [d.value for d in decisions if d.kind == "choose" and training.paths("ema")]
    trees = [s.tree for s in training.archive.state_dicts if s.path in paths]
    counters = [k for tree in trees for k, spec in tree.specs.items() if k in COUNTERS and spec.numel == 1]
    return [Decision("drop", k) for k in counters if k not in target]


def _front(tree: ParamTree) -> str:
    """``module.`` where all tensors of the network are under it (beside a count of updates)."""
    own = [k for k in tree.specs if k not in COUNTERS]
    return "module." if own and all(k.startswith("module.") for k in own) else ""
