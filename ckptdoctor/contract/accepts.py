"""Accepted findings: which entry of the settings answers for what, and until when."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ckptdoctor.contract import words
from ckptdoctor.contract.units import Project
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import SettingsError
from ckptdoctor.keys import select_all
from ckptdoctor.rules import find_rule
from ckptdoctor.settings.lines import find_line
from ckptdoctor.settings.model import TABLE, Accept

# What a project can live with. A stale lock, a broken chain and a missing safe migration are mended instead.
ACCEPTABLE = ("CKD703", "CKD705", "CKD706", "CKD707", "CKD710", "CKD711")


@dataclass
class Finding:
    """A diagnostic, and what of the project it is about."""

    diagnostic: Diagnostic
    unit: str = ""
    release: str = ""
    accepted: bool = False


@dataclass
class Accepts:
    """The entries of the settings; remembers which of them were of use."""

    project: Project
    today: datetime.date
    used: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        for number, entry in enumerate(self.project.settings.accept):
            rule = find_rule(entry.rule)
            if rule.code not in ACCEPTABLE:
                names = ", ".join(find_rule(code).name for code in ACCEPTABLE)
                raise SettingsError(
                    f"{self._place(number, 'rule')}: `{rule.name}` cannot be accepted; what can is {names}"
                )

    def apply(self, finding: Finding) -> None:
        """Take from the finding what is accepted; all of it gone makes it a note."""
        entries = [(n, e) for n, e in enumerate(self.project.settings.accept) if self._fits(e, finding)]
        if not entries:
            return
        left, by = list(finding.diagnostic.keys), []
        for number, entry in entries:
            covered = set(select_all(entry.keys, left))
            if covered or not finding.diagnostic.keys:
                self.used.add(number)
                if entry.until >= self.today:
                    by.append(entry)
                    left = [k for k in left if k not in covered]
        if not by:
            return
        notes = tuple(f"accepted until {e.until} by {e.owner}: {e.reason}" for e in by)
        diagnostic = replace(finding.diagnostic, notes=(*finding.diagnostic.notes, *notes), keys=tuple(left))
        if left:
            diagnostic = replace(
                diagnostic, notes=(*diagnostic.notes, f"not accepted: {words.key_words(left)}")
            )
        else:
            finding.accepted = True
            diagnostic = replace(diagnostic, severity="note", helps=(), keys=finding.diagnostic.keys)
        finding.diagnostic = diagnostic

    def _fits(self, entry: Accept, finding: Finding) -> bool:
        models = {finding.unit, finding.unit.partition(".")[0]}
        return (
            find_rule(entry.rule).code == finding.diagnostic.code
            and (entry.model is None or entry.model in models)
            and (entry.release is None or entry.release == finding.release)
        )

    def leftovers(self, *, complete: bool) -> Iterator[Diagnostic]:
        """CKD708 for entries past their date; CKD709 for those without use, if everything was checked."""
        for number, entry in enumerate(self.project.settings.accept):
            if entry.until < self.today:
                yield words.expired(self._place(number, "until"), entry.rule, str(entry.until), entry.owner)
            elif complete and number not in self.used:
                yield words.unused(self._place(number), entry.rule, entry.owner)

    def _place(self, number: int, *rest: str) -> str:
        text = self.project.file.read_text(encoding="utf-8")
        return f"{self.project.file.name}:{find_line(text, (*TABLE, 'accept', number, *rest))}"


def diagnostics(findings: Sequence[Finding]) -> list[Diagnostic]:
    """Errors first, then warnings and notes; each by code, in the order found."""
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted((f.diagnostic for f in findings), key=lambda d: (order[d.severity], d.code))
