"""The matching engine: ids, specs, names and scores; never torch or files."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdoctor.align.model import Alignment, Choice, Match, Question, Strip, Unused
from ckptdoctor.decisions import Decision
from ckptdoctor.trees import ParamTree

__all__ = ["Alignment", "Choice", "Match", "Question", "Strip", "Unused", "align"]


def align(source: ParamTree, target: ParamTree, decisions: Sequence[Decision] = ()) -> Alignment:
    """First version: exact keys, or one common first segment stripped."""
    heads = {k.partition(".")[0] for k in source.specs}
    strips: tuple[Strip, ...] = ()
    rename = {k: k for k in source.specs}
    if len(heads) == 1 and not any(k in target for k in source.specs):
        head = heads.pop()
        rename = {k: k.partition(".")[2] for k in source.specs}
        strips = (Strip(head, "torch.nn.DataParallel" if head == "module" else "", False, len(rename)),)
    back = {v: k for k, v in rename.items()}
    matches = {}
    for key, spec in target.specs.items():
        src = back.get(key)
        if src is not None and source[src].shape == spec.shape:
            matches[key] = Match(key, "safe", (src,), (), ("exact key",))
        else:
            matches[key] = Match(key, "missing")
    used = {s for m in matches.values() for s in m.sources}
    unused = {k: Unused(k, "not in the model", False) for k in source.specs if k not in used}
    bad = bool(unused) or any(m.status != "safe" for m in matches.values())
    return Alignment(
        matches, unused, strips, (), "undecided" if bad else ("repairable" if strips else "compatible")
    )
