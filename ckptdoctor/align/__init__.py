"""The matching engine: ids, specs, names and scores; never torch or files."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdoctor.align.model import Alignment, Choice, Match, Question, Strip, Unused
from ckptdoctor.decisions import Decision
from ckptdoctor.trees import ParamTree

__all__ = ["Alignment", "Choice", "Match", "Question", "Strip", "Unused", "align"]


def align(source: ParamTree, target: ParamTree, decisions: Sequence[Decision] = ()) -> Alignment:
    """Find which checkpoint keys fill which model keys, through which ops, resting on what."""
    from ckptdoctor.align.engine import run

    return run(source, target, decisions)
