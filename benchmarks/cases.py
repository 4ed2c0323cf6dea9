"""Cases: pairs of trees with exact ground truth. The format is described in fixtures/cases/README.md."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptdoctor.trees import ParamTree, TensorSpec

# Ops of a truth that name no source because the key stays at the model's own value.
UNFILLED = ("missing-ok", "must-flag-missing")


@dataclass(frozen=True, slots=True)
class Fill:
    """The true (or claimed) way of one model key: a chain of op texts over checkpoint keys."""

    sources: tuple[str, ...]
    ops: tuple[str, ...] = ()  # () is a plain copy


@dataclass(frozen=True)
class Case:
    """One pair and its truth. Only ``source`` and ``target`` are shown to an engine."""

    name: str
    tier: str
    source: ParamTree
    target: ParamTree
    verdict: str
    truth: Mapping[str, Fill]
    unfilled: Mapping[str, str] = field(
        default_factory=dict
    )  # model key -> "missing-ok" | "must-flag-missing"
    dropped: Mapping[str, str] = field(default_factory=dict)
    certain: frozenset[str] = frozenset()  # where the truth is open: keys that may be claimed all the same
    family: str = ""
    kind: str = ""  # of a mutation
    title: str = ""  # the name that the file itself gives
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """Whether any static tool could tell right from wrong here."""
        return self.verdict != "undetectable"

    @property
    def open_ended(self) -> bool:
        """Whether asking or refusing is the right answer."""
        return self.verdict in ("ambiguous", "policy_choice", "refuse")


def read_case(path: Path) -> Case:
    """One case file, JSON or gzipped JSON."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return case_from(json.loads(raw), path.name.split(".")[0])


def read_cases(folder: Path) -> list[Case]:
    """All cases of a folder, sorted by file name. Raises FileNotFoundError when there are none."""
    paths = sorted(p for p in folder.iterdir() if p.name.endswith((".json", ".json.gz")))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no case (*.json or *.json.gz)")
    return [read_case(p) for p in paths]


def case_from(data: Mapping[str, Any], name: str) -> Case:
    """A case from its parsed JSON. One without a ground truth is run and not scored."""
    known = data.get("ground_truth") or {"verdict": "undetectable", "mapping": {}, "dropped": {}}
    truth, unfilled = {}, {}
    for key, entry in known["mapping"].items():
        if entry["op"] in UNFILLED:
            unfilled[key] = entry["op"]
        else:
            ops = () if entry["op"] == "copy" else tuple(entry["op"].split("|"))
            truth[key] = Fill(tuple(entry["sources"]), ops)
    extra = data.get("extra") or {}
    return Case(
        name,
        data["tier"],
        tree_of(data["source"]),
        tree_of(data["target"]),
        known["verdict"],
        truth,
        unfilled,
        known.get("dropped") or {},
        frozenset(extra.get("allowed_certain_targets", ())),
        family=data.get("family", ""),
        title=data.get("name", name),
        extra=extra,
    )


def tree_of(side: Mapping[str, Any]) -> ParamTree:
    """A tree from one side of a case.

    Keys in sorted order are taken as a sorted header, which says nothing of the registration order.
    """
    storage = {key: f"tie{i}" for i, group in enumerate(side.get("tied") or ()) for key in group}
    specs = {}
    for key, (shape, dtype, *kind) in side["keys"].items():
        specs[key] = TensorSpec(tuple(shape), dtype, kind[0] if kind else "", storage=storage.get(key, ""))
    keys = list(specs)
    return ParamTree(specs, ordered=keys != sorted(keys), modules=dict(side.get("modules") or ()))


def tie_leader(tree: ParamTree) -> dict[str, str]:
    """Tied key -> first key of its group: keys of one group are one tensor."""
    return {key: group[0] for group in tree.ties for key in group}


def by_tier(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases grouped by tier, tiers in order."""
    found: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda c: (c.tier, c.name)):
        found.setdefault(case.tier, []).append(case)
    return found
