"""One finding as frozen data. Rules make them, reports render them, errors carry them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
Applicability = Literal["safe", "unsafe", "undecided"]


@dataclass(frozen=True, slots=True)
class Fix:
    """What repairs the finding, in words, and how far it can be trusted."""

    text: str
    applicability: Applicability


@dataclass(frozen=True, slots=True)
class Help:
    """A flag or command that can be pasted, and what it does."""

    command: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of evidence, drawn and not told.

    ``mark`` is ``"-"`` (checkpoint), ``"+"`` (model), ``"^"`` (underline of the line above) or ``" "``.
    """

    text: str
    mark: Literal[" ", "-", "+", "^"] = " "


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: what is wrong (``title``), where, why we think so, what to do."""

    code: str  # "CKD101"
    name: str  # "wrapper-prefix"
    severity: Severity
    title: str  # one sentence, subject first
    place: str = ""  # file, file#key or model.py:line
    place_note: str = ""  # grey words behind the place
    evidence: tuple[Line, ...] = ()
    why: str = ""
    notes: tuple[str, ...] = ()
    fix: Fix | None = None
    helps: tuple[Help, ...] = ()
    keys: tuple[str, ...] = ()  # every key it speaks of, unfolded

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "code": self.code,
            "name": self.name,
            "severity": self.severity,
            "title": self.title,
            "place": self.place,
            "evidence": [{"mark": line.mark, "text": line.text} for line in self.evidence],
            "why": self.why,
            "notes": list(self.notes),
            "fix": None
            if self.fix is None
            else {"text": self.fix.text, "applicability": self.fix.applicability},
            "help": [{"command": h.command, "text": h.text} for h in self.helps],
            "keys": list(self.keys),
        }
