"""The words that all forms of a check's report share."""

from __future__ import annotations

from collections import Counter

from ckptdoctor.contract.report import CheckReport, Row
from ckptdoctor.keys import printable
from ckptdoctor.rules.words import count


def printable_lines(text: str) -> str:
    """A message of several lines, each safe to print, indented below the first."""
    return "\n    ".join(printable(line) for line in text.splitlines())


def release_words(row: Row) -> str:
    """``1.0``, or ``1.0 (new checkpoints)`` for the way back."""
    return row.release if row.direction == "backward" else f"{row.release} (new checkpoints)"


def verdict(report: CheckReport) -> str:
    """One line: what was found, or that it could not be checked, or what was checked."""
    if report.problems:
        return f"Could not check everything: {count(len(report.problems), 'problem')}."
    errors = [d for d in report.diagnostics if d.severity == "error"]
    if errors:
        tally = Counter(d.name for d in errors)
        words = ", ".join(f"{n} {name}" for name, n in tally.items())
        return f"Found {count(len(errors), 'error')}: {words}."
    return f"All fine: {checked(report)}."


def checked(report: CheckReport) -> str:
    """``checked 2 models against 5 releases (1 not built again: nothing it reads has changed)``."""
    releases = len({(row.unit, row.release) for row in report.rows})
    words = f"checked {count(len(report.models), 'model')} against {count(releases, 'release')}"
    if report.artifacts:
        words += f", and {count(report.artifacts, 'artifact')}"
    how = Counter(report.models.values())
    if how["unchanged"]:
        words += f"; {how['unchanged']} not built again, since nothing that the last build read has changed"
    if how["lock"]:
        words += f"; {how['lock']} not built: the committed tree was taken as it is"
    return words


def commands(report: CheckReport) -> list[tuple[str, str]]:
    """What to do next."""
    codes = {d.code for d in report.diagnostics if d.severity == "error"}
    found = []
    if "CKD701" in codes:
        found.append(("next", "ckptdoctor lock"))
    elif "CKD702" in codes and "CKD704" not in codes:
        found.append(("next", "ckptdoctor migrate --write"))
    if codes:
        found.append(("more", f"ckptdoctor explain {sorted(codes)[-1]}"))
    return found


def concise(report: CheckReport) -> list[str]:
    """One line a finding, then the verdict."""
    lines = []
    for d in report.diagnostics:
        mark = "[*] " if d.fix is not None and d.fix.applicability == "safe" else ""
        lines.append(f"{printable(d.place)}: {d.severity}: {d.code} {mark}{d.title}")
    lines += [f"could not check: {printable_lines(p)}" for p in report.problems]
    return [*lines, verdict(report)]
