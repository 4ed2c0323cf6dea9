"""The matching engine: ids, specs, names and scores; never torch or files."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdoctor.align.model import Alignment, Choice, Match, Question, Strip, Unused
from ckptdoctor.align.reporter import Reporter
from ckptdoctor.decisions import Decision
from ckptdoctor.trees import ParamTree

__all__ = ["Alignment", "Choice", "Match", "Question", "Reporter", "Strip", "Unused", "align"]


def align(
    source: ParamTree,
    target: ParamTree,
    decisions: Sequence[Decision] = (),
    *,
    reporter: Reporter | None = None,
) -> Alignment:
    """Find which checkpoint keys fill which model keys, through which ops, resting on what.

    Decisions enter first and are checked; a decision that fits nothing raises
    :class:`~ckptdoctor.errors.DecisionError`.
    """
    from ckptdoctor.align.engine import run

    return run(source, target, decisions, reporter)
