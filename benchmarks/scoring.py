"""The measure: solved, asked, refused, partial or wrong, and what differed.

solved   every model key gets exactly the true sources and ops, or is rightly left at its initial value
asked    not solved, nothing claimed is wrong, and the open part names the true answer
refused  nothing is claimed, or the pair is declared incompatible
partial  nothing claimed is wrong, but an open key does not name its true answer
wrong    a key claimed safe differs from the truth, or a gap is passed over in silence
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.cases import Case, Fill, tie_leader
from benchmarks.equality import same_ops
from ckptdoctor.align.model import Alignment

Kind = Literal["solved", "asked", "refused", "partial", "wrong"]
KINDS: tuple[Kind, ...] = ("solved", "asked", "refused", "partial", "wrong")


@dataclass(frozen=True)
class Answer:
    """What an engine says, in the form that is judged. Baselines ask nothing and offer no choice."""

    claims: Mapping[str, Fill]  # model key -> how it is filled, presented as safe
    kept: frozenset[str] = frozenset()  # presented as rightly left at the initial value
    choices: Mapping[str, tuple[Fill, ...]] = field(default_factory=dict)  # open key -> possible answers
    asks: tuple[tuple[frozenset[str], frozenset[str]], ...] = ()  # questions: (model keys, checkpoint keys)
    content: bool = False  # it says that nothing needs a decision
    refused: bool = False


@dataclass(frozen=True)
class Outcome:
    """The judgement of one case; ``differences`` tells every key that kept it from `solved`."""

    kind: Kind
    differences: tuple[str, ...] = ()


def answer_of(alignment: Alignment) -> Answer:
    """The engine's alignment as an answer."""
    matches = alignment.matches.values()
    claims = {m.target: Fill(m.sources, m.ops) for m in matches if m.status == "safe"}
    choices = {
        m.target: tuple(Fill(c.sources, c.ops) for c in m.choices) for m in matches if m.status == "undecided"
    }
    return Answer(
        claims,
        frozenset(m.target for m in matches if m.status == "kept"),
        choices,
        tuple((frozenset(q.targets), frozenset(q.sources)) for q in alignment.questions),
        alignment.verdict in ("compatible", "repairable"),
        alignment.verdict == "incompatible",
    )


def judge(case: Case, answer: Answer) -> Outcome:
    """Compare an answer with the truth of a case."""
    court = _Court(case)
    wrong = court.wrong_claims(answer)
    if wrong:
        return Outcome("wrong", tuple(wrong))
    open_keys = court.open_keys(answer)
    if not open_keys and not case.open_ended:
        return Outcome("solved")
    if answer.content:
        return Outcome("wrong", ("says that nothing needs a decision", *open_keys))
    if answer.refused or not answer.claims:
        return Outcome("refused", tuple(open_keys))
    unnamed = [key for key in open_keys if not court.named(key, answer)]
    if case.open_ended or not unnamed:
        return Outcome("asked", tuple(open_keys))
    return Outcome("partial", tuple(f"{key}: the true answer is not offered" for key in unnamed))


class _Court:
    """One case, prepared for judging."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.leader = tie_leader(case.source)
        self.mates = {key: group for group in case.target.ties for key in group}

    def wrong_claims(self, answer: Answer) -> list[str]:
        found = []
        for key, claim in answer.claims.items():
            if not self.right(key, claim):
                found.append(f"{key}: claimed {show(claim)}, truth {self.truth_text(key)}")
        for key in answer.kept:
            if self.needed(key) and self.case.target[key].kind != "buffer" and not self.case.open_ended:
                found.append(f"{key}: claimed to stay as it is, truth {self.truth_text(key)}")
        return found

    def needed(self, key: str) -> bool:
        """Whether leaving the key at its initial value is not right."""
        return key in self.case.truth or self.case.unfilled.get(key) == "must-flag-missing"

    def right(self, key: str, claim: Fill) -> bool:
        case = self.case
        if case.open_ended and key not in case.certain and not self.harmless(key):
            return False
        true = [case.truth[key]] if key in case.truth else []
        if (
            true or case.unfilled.get(key) == "missing-ok"
        ):  # tied keys are one tensor: a mate's source will do
            true += [case.truth[m] for m in self.mates.get(key, ()) if m in case.truth]
        return any(self.equal(claim, fill) for fill in true)

    def harmless(self, key: str) -> bool:
        """In a pair that does not fit, the recorded mapping is the part that may be loaded."""
        return self.case.verdict == "refuse" and key in self.case.truth

    def equal(self, a: Fill, b: Fill) -> bool:
        mine = [self.leader.get(s, s) for s in a.sources]
        true = [self.leader.get(s, s) for s in b.sources]
        if mine != true or any(s not in self.case.source for s in a.sources):
            return False
        shapes = tuple(self.case.source[s].shape for s in a.sources)
        return same_ops(a.ops, b.ops, shapes)

    def open_keys(self, answer: Answer) -> list[str]:
        """Model keys that are not (rightly) settled."""
        found = [
            k for k in (*self.case.truth, *self.case.unfilled) if self.needed(k) and k not in answer.claims
        ]
        found += [k for k in self.case.unfilled if k in answer.choices and k not in found]
        asked = {k for targets, _ in answer.asks for k in targets}
        found += [k for k in self.case.truth if k in asked and k not in found]
        return found

    def named(self, key: str, answer: Answer) -> bool:
        truth = self.case.truth.get(key)
        if truth is None or key in answer.claims or any(op.startswith(("arith", "pad")) for op in truth.ops):
            return True
        if "needs_library_knowledge" in self.case.extra:
            return key not in answer.kept
        if any(self.equal(choice, truth) for choice in answer.choices.get(key, ())):
            return True
        return any(key in targets and set(truth.sources) <= sources for targets, sources in answer.asks)

    def truth_text(self, key: str) -> str:
        truth = self.case.truth.get(key)
        if truth is not None and (self.case.certain or self.case.open_ended) and key not in self.case.certain:
            return "is not determined"
        return show(truth) if truth is not None else self.case.unfilled.get(key, "nothing")


def show(fill: Fill) -> str:
    """`a.weight, b.weight | concat(0)`."""
    return " | ".join([", ".join(fill.sources), *fill.ops])
