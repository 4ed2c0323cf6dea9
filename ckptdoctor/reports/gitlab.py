"""GitLab's code quality report (docs.gitlab.com, "Code Quality": the issue fields that it reads)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ckptdoctor.contract.report import CheckReport
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.reports.places import file_and_line, fingerprint, message

_SEVERITIES = {"error": "major", "warning": "minor", "note": "info"}


def check_text(report: CheckReport) -> str:
    """All findings as a JSON array; what could not be checked is a blocker."""
    rows = issues(report.diagnostics)
    for problem in report.problems:
        whole = Diagnostic(
            "CKD000", "could-not-check", "error", f"could not check: {problem}", "pyproject.toml"
        )
        rows += [{**row, "severity": "blocker"} for row in issues([whole])]
    return json.dumps(rows, indent=1, ensure_ascii=True) + "\n"


def issues(diagnostics: Sequence[Diagnostic]) -> list[dict[str, Any]]:
    """One object for each finding; fingerprints are unique, as GitLab wants them."""
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for diagnostic in diagnostics:
        file, line = file_and_line(diagnostic.place or "pyproject.toml")
        mark = fingerprint(diagnostic)
        seen[mark] = seen.get(mark, 0) + 1
        rows.append(
            {
                "description": message(diagnostic),
                "check_name": f"{diagnostic.code} {diagnostic.name}",
                "fingerprint": mark if seen[mark] == 1 else f"{mark}-{seen[mark]}",
                "severity": _SEVERITIES[diagnostic.severity],
                "location": {"path": file, "lines": {"begin": line}},
            }
        )
    return rows
