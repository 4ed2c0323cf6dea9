"""HEAD's side of the check: the tree that each unit's code builds, from the cache where that is sure."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from ckptdoctor.contract.cache import cached_tree, keep_tree
from ckptdoctor.contract.units import Project, Unit
from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.trees import ParamTree

AT_ONCE = 2  # builds that run at the same time; each imports torch


@dataclass(frozen=True)
class Head:
    """One unit as its code builds it; ``problem`` says why there is no tree."""

    unit: Unit
    tree: ParamTree | None
    how: Literal["built", "unchanged", "lock", "given"] = "built"
    problem: str = ""


def build_heads(project: Project, units: Sequence[Unit], *, fresh: bool = False) -> list[Head]:
    """The trees of all units, in their order. ``fresh`` builds them whatever the cache says."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda unit: _head(project, unit, fresh), units))


def _head(project: Project, unit: Unit, fresh: bool) -> Head:
    known = None if fresh else cached_tree(project, unit)
    if known is not None:
        return Head(unit, known, "unchanged")
    from ckptdoctor.targets.source import build_recorded

    try:
        target, inputs = build_recorded(unit.model.entry, project.root, unit.kwargs, unit.model.timeout)
    except CkptDoctorError as error:
        return Head(unit, None, problem=f"{unit.name}: {error}")
    keep_tree(project, unit, target.tree, inputs)
    return Head(unit, target.tree)
