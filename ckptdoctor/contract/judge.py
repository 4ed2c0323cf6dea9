"""Whether a checkpoint of one tree loads into a model of another, and what is open if not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ckptdoctor.contract.consumers import Plainly, plainly
from ckptdoctor.decisions import Decision
from ckptdoctor.diagnosis import Diagnosis, examine
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.keys import cover, select_all
from ckptdoctor.plan import Plan
from ckptdoctor.settings.model import Consumer, Level
from ckptdoctor.targets import Target
from ckptdoctor.trees import ParamTree

Outcome = Literal["compatible", "tolerated", "repairable", "open"]


@dataclass(frozen=True)
class Terms:
    """How much has to hold: which keys count, and who loads."""

    level: Level = "strict"
    consumers: tuple[Consumer, ...] = ("torch-strict",)

    def outside(self, keys: Sequence[str], *trees: ParamTree) -> list[str]:
        """Those of the keys that do not count at this level."""
        if self.level == "strict":
            return []
        if self.level == "weights":
            kinds = {k: s.kind for tree in trees for k, s in tree.specs.items() if s.kind}
            return [k for k in keys if kinds.get(k) == "buffer"]
        inside = set(select_all(self.level, keys))
        return [k for k in keys if k not in inside]


@dataclass(frozen=True)
class Judgement:
    """What came out. ``open`` are the keys of both sides that nothing fills or uses."""

    outcome: Outcome
    plan: Plan | None = None
    open: tuple[str, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
    plain: Plainly | None = None


def judge(
    source: ParamTree,
    target: ParamTree,
    terms: Terms,
    *,
    file: str,
    label: str,
    decisions: Sequence[Decision] = (),
) -> Judgement:
    """Compare two trees at these terms; ``file`` and ``label`` name them in plans and findings."""
    if source.digest == target.digest and source.extra.keys() == target.extra.keys():
        return Judgement("compatible")
    plain = plainly(source, target)
    found = _examine(source, target, file, label, decisions)
    extra = _extra_open(source, target, terms)
    open_keys = (*_open(found), *extra)
    outside = terms.outside(open_keys, source, target)
    if outside:
        # What does not count at this level may go or stay; the plan records that as decisions.
        found = _examine(source, target, file, label, (*decisions, *_let_go(outside, source, target)))
        open_keys = (*_open(found), *(k for k in extra if k not in outside))
    if not open_keys and (found.verdict == "compatible" or (outside and _moves_nothing(found))):
        return Judgement("compatible", found.plan)
    if not open_keys and found.verdict == "repairable" and found.plan is not None:
        return Judgement("repairable", found.plan, findings=found.diagnostics, plain=plain)
    if _only_plain(open_keys, plain, found, source, target) and plain.passes(terms.consumers):
        return Judgement("tolerated", None, open_keys, found.diagnostics, plain)
    errors = tuple(d for d in found.diagnostics if d.severity == "error" and d.fix is None)
    return Judgement("open", None, open_keys or _all_keys(errors, plain), errors, plain)


def tree_archive(tree: ParamTree, file: str) -> Archive:
    """A committed tree as the checkpoint that it stands for: a plain state dict without values."""
    whole = StateDict("", tree)
    return Archive(file, "torch-zip", "committed tree", 0, (whole,), {}, tensors=len(tree), files=(file,))


def _examine(
    source: ParamTree, target: ParamTree, file: str, label: str, decisions: Sequence[Decision]
) -> Diagnosis:
    return examine(tree_archive(source, file), Target(target, label), tuple(decisions))


def _open(found: Diagnosis) -> tuple[str, ...]:
    """Keys of either side that the alignment leaves open."""
    if found.alignment is None:
        return ()
    missing = [m.target for m in found.alignment.matches.values() if m.status in ("missing", "undecided")]
    unused = [u.source for u in found.alignment.unused.values() if not u.decided]
    settled = {
        k for m in found.alignment.matches.values() if m.status == "safe" for k in (m.target, *m.sources)
    }
    asked = [k for q in found.alignment.questions for k in (*q.targets, *q.sources) if k not in settled]
    return tuple(dict.fromkeys((*missing, *unused, *asked)))


def _extra_open(source: ParamTree, target: ParamTree, terms: Terms) -> tuple[str, ...]:
    """Extra state on one side only; no step of a plan makes or drops it."""
    keys = sorted(source.extra.keys() ^ target.extra.keys())
    return tuple(keys) if terms.level == "strict" else ()


def _let_go(keys: Sequence[str], source: ParamTree, target: ParamTree) -> list[Decision]:
    drops = [k for k in keys if k in source.specs]
    keeps = [k for k in keys if k in target.specs]
    found = [Decision("drop", p) for p in cover(drops, source.specs)] if drops else []
    return found + ([Decision("reinit", p) for p in cover(keeps, target.specs)] if keeps else [])


def _moves_nothing(found: Diagnosis) -> bool:
    """Whether every key that counts keeps its name and its values."""
    still = {"drop", "reinit", "keep", "cast"}
    return (
        found.verdict == "repairable" and found.plan is not None and {s.op for s in found.plan.step} <= still
    )


def _only_plain(
    open_keys: Sequence[str], plain: Plainly, found: Diagnosis, source: ParamTree, target: ParamTree
) -> bool:
    """Whether nothing but plainly missing and unexpected keys is open: a rename is never tolerated."""
    there = {*plain.missing, *plain.unexpected}
    renamed = found.alignment is not None and any(
        len(m.sources) != 1 or m.sources[0] != m.target
        for m in found.alignment.matches.values()
        if m.sources and m.status in ("safe", "unsafe")
    )
    # A loader goes by names alone, so what has one name and shape on both sides is not open to it.
    same = {k for k in open_keys if k in source and k in target and source[k].shape == target[k].shape}
    return bool(open_keys) and not renamed and set(open_keys) - same == there


def _all_keys(errors: Sequence[Diagnostic], plain: Plainly) -> tuple[str, ...]:
    keys = [k for d in errors for k in d.keys]
    return tuple(dict.fromkeys(keys or (*plain.missing, *plain.unexpected, *plain.mismatched)))
