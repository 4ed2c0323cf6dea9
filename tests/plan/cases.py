"""Real pairs of trees with their true mapping, as alignments."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from ckptdoctor.align.model import Alignment, Match, Unused
from ckptdoctor.trees import ParamTree, TensorSpec

FOLDER = Path(__file__).parents[2] / "fixtures" / "cases"
NAMES = sorted(p.name.removesuffix(".json.gz") for p in FOLDER.glob("*.json.gz"))


def load(name: str) -> tuple[Alignment, ParamTree, ParamTree]:
    """The ground truth of a case as an alignment, and the two trees."""
    with gzip.open(FOLDER / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        case = json.load(file)
    truth = case["ground_truth"]
    tied = {key: min(group) for group in case["target"].get("tied", []) for key in group}
    source = ParamTree({k: TensorSpec(tuple(v[0]), v[1]) for k, v in case["source"]["keys"].items()})
    specs = case["target"]["keys"].items()
    target = ParamTree({k: TensorSpec(tuple(v[0]), v[1], v[2], storage=tied.get(k, "")) for k, v in specs})
    matches = {key: match(key, truth["mapping"].get(key)) for key in target.specs}
    used = {s for m in matches.values() for s in m.sources}
    left = [k for k in source.specs if k not in used]
    dropped = truth["dropped"]
    return Alignment(matches, {k: Unused(k, dropped.get(k, ""), k in dropped) for k in left}), source, target


def match(key: str, entry: dict[str, object] | None) -> Match:
    """One entry of the ground truth."""
    op = str(entry["op"]) if entry else "must-flag-missing"
    if op.startswith(("must", "arith")):
        return Match(key, "missing")
    if op == "missing-ok":
        return Match(key, "kept", evidence=("derived buffer",))
    ops = () if op == "copy" else tuple(op.split("|"))
    assert entry is not None and isinstance(entry["sources"], list)
    return Match(key, "safe", tuple(entry["sources"]), ops, ("names and shapes agree",))
