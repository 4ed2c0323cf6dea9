"""Renames in few words: the plan's own rules where there is a plan, else folded pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckptdoctor.keys import fold
from ckptdoctor.rules.base import Case


@dataclass(frozen=True, slots=True)
class RenameGroup:
    """One rule: what the checkpoint calls it, what the model calls it, how many keys, why."""

    source: str
    target: str
    keys: int
    why: str = ""


def rename_groups(case: Case, pairs: Sequence[tuple[str, str]]) -> list[RenameGroup]:
    """The plan's rename steps; without a plan the pairs folded where both sides fold alike."""
    if case.plan is not None:
        steps = [step for step in case.plan.step if step.op == "rename"]
        found = [RenameGroup(_text(s.from_), _text(s.to), s.keys, s.why) for s in steps]
        if found:
            return found
    return _folded(pairs)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value))


def _folded(pairs: Sequence[tuple[str, str]]) -> list[RenameGroup]:
    # Keys that differ from their partner in the same way (same common tail) are one group.
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for source, target in pairs:
        groups.setdefault(_heads(source, target), []).append((source, target))
    out = []
    for (a, b), members in groups.items():
        if len(members) == 1 or not a or not b:
            left, right = fold([s for s, _ in members]), fold([t for _, t in members])
            source = ", ".join(f.text for f in left)
            target = ", ".join(f.text for f in right)
        else:
            source, target = f"{a}.**", f"{b}.**"
        out.append(RenameGroup(source, target, len(members)))
    return out


def _heads(source: str, target: str) -> tuple[str, str]:
    """Both names without the segments that they share at the end."""
    a, b = source.split("."), target.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return ".".join(a), ".".join(b)
