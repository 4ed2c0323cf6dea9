"""What a check found, as data; reports render it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ckptdoctor.diagnostics import Diagnostic

FORMAT = 1  # version of to_dict()

Direction = Literal["backward", "forward"]
Verdict = Literal["compatible", "migratable", "migration missing", "breaking", "accepted"]


@dataclass(frozen=True)
class Row:
    """One release against HEAD's model.

    ``backward``: the release's checkpoint into HEAD's model; ``forward``: HEAD's into the release's.
    ``what`` says in a few words what differs.
    """

    unit: str
    release: str
    direction: Direction
    verdict: Verdict
    what: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done."""
        return self.verdict in ("compatible", "migratable", "accepted")


@dataclass(frozen=True)
class Proposal:
    """A migration that nobody has committed: the path it would have and its text."""

    unit: str
    path: str
    text: str


@dataclass(frozen=True)
class CheckReport:
    """What :func:`ckptdoctor.check` found.

    ``problems`` are what could not be checked, and why; with any of them nothing is called fine. ``models``
    says for each model and variant how its tree was known: ``"built"``, ``"unchanged"`` (nothing that the
    last build read has changed), ``"lock"`` (the committed tree was taken as it is, as was asked for), or
    ``"given"`` (a live model).
    """

    rows: tuple[Row, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    problems: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    artifacts: int = 0
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: all fine; 1: findings; 2: something could not be checked."""
        if self.problems:
            return 2
        return int(any(d.severity == "error" for d in self.diagnostics))

    @property
    def ok(self) -> bool:
        """Whether everything was checked and nothing has to be done."""
        return self.exit_code == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the same as ``ckptdoctor check --format json``; ``format`` is its version."""
        return {
            "format": FORMAT,
            "ok": self.ok,
            "exit_code": self.exit_code,
            "models": dict(self.models),
            "verdicts": [
                {
                    "model": row.unit,
                    "release": row.release,
                    "direction": row.direction,
                    "verdict": row.verdict,
                    "what": row.what,
                }
                for row in self.rows
            ],
            "artifacts": self.artifacts,
            "diagnostics": [d.to_dict() for d in self.diagnostics],
            "migrations": [{"model": p.unit, "path": p.path, "text": p.text} for p in self.proposals],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        words = ", ".join(f"{r.unit} {r.release}: {r.verdict}" for r in self.rows) or "no release"
        return f"<CheckReport exit {self.exit_code}; {words}>"
