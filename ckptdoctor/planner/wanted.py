"""What a plan has to give: one fill for each decided key of the model, from the alignment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ckptdoctor.align.model import Alignment, Match
from ckptdoctor.decisions import Decision
from ckptdoctor.keys import matches
from ckptdoctor.plan.expand import Expansion
from ckptdoctor.plan.fills import Fill, copied
from ckptdoctor.trees import ParamTree


def wanted_fills(alignment: Alignment, target: ParamTree, decisions: Sequence[Decision]) -> dict[str, Fill]:
    """Fills of the decided keys, in the model's order; tied keys hang on the first loaded one."""
    anchors = {k: a for g in target.ties if (a := _anchor(alignment, g)) for k in g if k != a}
    found = list(map(alignment.matches.get, target.specs))
    if not anchors and all(m and m.status == "safe" and m.sources and not m.ops for m in found):
        return dict(zip(target.specs, copied(target.specs, [m.sources for m in found if m]), strict=True))
    fills: dict[str, Fill] = {}
    for key in target.specs:
        match = alignment.matches.get(key) or Match(key, "missing")
        fill = _loaded(match) or _own(match, decisions)
        anchor = anchors.get(key)
        if anchor is not None and _same_tensor(alignment.matches[anchor], match, fill):
            first = _loaded(alignment.matches[anchor])
            assert first is not None
            fill = Fill(key, "tie", first.sources, first.ops, tied_to=anchor)
        if fill is not None:
            fills[key] = fill
    return fills


def _anchor(alignment: Alignment, group: Sequence[str]) -> str:
    """The first key of a tied group that is loaded, or ``""``."""
    found = (k for k in group if (m := alignment.matches.get(k)) is not None and _loaded(m) is not None)
    return next(found, "")


def _same_tensor(anchor: Match, match: Match, fill: Fill | None) -> bool:
    if fill is None or fill.kind == "keep":
        return match.status in ("kept", "missing")
    return fill.kind == "load" and (match.sources, _ops(match)) == (anchor.sources, _ops(anchor))


def _loaded(match: Match) -> Fill | None:
    if match.status in ("safe", "unsafe") and match.sources:
        return Fill(match.target, "load", match.sources, _ops(match) if match.ops else ())
    return None


def _own(match: Match, decisions: Sequence[Decision]) -> Fill | None:
    if match.status != "kept":
        return None
    asked = any(d.kind == "reinit" and matches(d.value, match.target) for d in decisions)
    return Fill(match.target, "reinit" if asked else "keep")


def _ops(match: Match) -> tuple[str, ...]:
    text = "|".join(match.ops)
    return () if text in ("", "copy") else tuple(text.split("|"))


def same_fill(made: Expansion, key: str, want: Fill) -> bool:
    """Whether the plan fills the key as wanted (the cast is not part of an alignment)."""
    got = made.fills.get(key)
    if got is None or got == want:
        return got is not None
    return (got.kind, got.sources, got.ops, got.tied_to) == (want.kind, want.sources, want.ops, want.tied_to)


def why(found: Sequence[Match]) -> str:
    """The evidence that most of these matches rest on."""
    if len(found) == 1:
        return "; ".join(found[0].evidence[:2])
    counts = Counter(m.evidence for m in found)
    best = max(counts.items(), key=lambda item: (item[1], item[0]), default=((), 0))[0]
    return "; ".join(best[:2])
