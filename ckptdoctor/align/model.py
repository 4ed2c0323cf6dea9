"""What the matching engine returns: one match per model key, the leftovers, and the questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Status = Literal["safe", "unsafe", "undecided", "missing", "kept"]
Verdict = Literal["compatible", "repairable", "undecided", "incompatible"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One possible answer of an undecided match: which sources, which ops, resting on what."""

    sources: tuple[str, ...]
    ops: tuple[str, ...] = ()  # op texts, see ckptdoctor.ops; () is a plain copy
    why: str = ""


class Match(NamedTuple):
    """How one model key is filled.

    ``safe``: from ``sources`` through ``ops``; ``undecided``: one of ``choices``, a person has to say;
    ``missing``: nothing in the checkpoint; ``kept``: stays at the model's initial value, with a reason
    (a derived buffer, or a recorded decision); ``unsafe``: a decided, lossy repair.
    """

    target: str
    status: Status
    sources: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The entry of ``alignment`` in ``diagnose --format json``."""
        return {
            "target": self.target,
            "sources": list(self.sources),
            "ops": list(self.ops) or (["copy"] if self.sources else []),
            "status": self.status,
            "evidence": list(self.evidence),
            "choices": [
                {"sources": list(c.sources), "ops": list(c.ops) or ["copy"], "why": c.why}
                for c in self.choices
            ],
        }


@dataclass(frozen=True, slots=True)
class Unused:
    """A checkpoint key that fills nothing. ``decided`` when the reason is good enough to drop it.

    ``equals`` names the checkpoint key whose values it has to repeat for the reason to hold (the copy
    of a tied tensor); that is checked when the values are read.
    """

    source: str
    reason: str
    decided: bool
    equals: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """A wrapper's path segment removed from checkpoint keys before matching.

    ``segment`` is removed once, at the front (``anywhere=False``, only from keys under ``where``)
    or wherever it stands (``anywhere=True``). ``count`` keys changed.
    """

    segment: str  # "module", "_orig_mod", "model", "bert", may hold dots: "base_model.model"
    wrapper: str  # "torch.nn.DataParallel", "torch.compile", ... or "" when only a prefix
    anywhere: bool
    count: int


@dataclass(frozen=True, slots=True)
class Question:
    """A person has to decide. ``flags`` are ``(command line flag, what it does)``."""

    # "envelope", "equal-shapes", "layout", "packed", "rotary", "shape", "duplicate", "adapter", "missing" ...
    kind: str
    title: str
    targets: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    flags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Alignment:
    """All matches (in the model's order), the unused checkpoint keys, and what stands between."""

    matches: Mapping[str, Match]
    unused: Mapping[str, Unused] = field(default_factory=dict)
    strips: tuple[Strip, ...] = ()
    questions: tuple[Question, ...] = ()
    verdict: Verdict = "compatible"  # of keys and shapes alone; envelopes etc. can only worsen it
    refusal: str = ""  # one sentence when `incompatible`: which other architecture or variant, and the facts
    warnings: tuple[str, ...] = ()  # invisible risks that names suggest ("fused qkv crosses families ...")
