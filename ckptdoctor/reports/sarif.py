"""SARIF 2.1.0, for GitHub code scanning and every other viewer.

Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0"; what GitHub needs of it
is in docs.github.com, "SARIF support for code scanning": relative places, and fingerprints.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ckptdoctor import __version__
from ckptdoctor.contract.report import CheckReport
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.keys import printable
from ckptdoctor.reports.places import file_and_line, fingerprint, message, relative_uri
from ckptdoctor.rules import Rule, rules

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MAX_RESULTS = 5000  # of one run, which GitHub shows
PAGE = "https://pypi.org/project/ckptdoctor/"


def check_text(report: CheckReport) -> str:
    """The report of a check; what could not be checked is a failed invocation with notifications."""
    return json.dumps(log(report.diagnostics, report.problems), indent=1, ensure_ascii=True) + "\n"


def log(diagnostics: Sequence[Diagnostic], problems: Sequence[str] = ()) -> dict[str, Any]:
    """One SARIF log with one run."""
    used = {d.code for d in diagnostics}
    listed = [rule for rule in rules() if rule.code in used]
    index = {rule.code: number for number, rule in enumerate(listed)}
    invocation: dict[str, Any] = {"executionSuccessful": not problems}
    if problems:
        invocation["toolExecutionNotifications"] = [
            {"level": "error", "message": {"text": _lines(problem)}} for problem in problems
        ]
    driver = {
        "name": "ckptdoctor",
        "semanticVersion": __version__,
        "informationUri": PAGE,
        "rules": [_rule(rule) for rule in listed],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": [_result(d, index) for d in diagnostics[:MAX_RESULTS]],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    text = rule.explain().replace("``", "`")
    first = " ".join(text.partition("\n\n")[0].split())
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": first},
        "fullDescription": {"text": first},
        "help": {"text": text},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(diagnostic: Diagnostic, index: dict[str, int]) -> dict[str, Any]:
    file, line = file_and_line(diagnostic.place)
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "level": diagnostic.severity,
        "message": {"text": message(diagnostic)},
        "partialFingerprints": {"ckptdoctor/v1": fingerprint(diagnostic)},
    }
    if diagnostic.code in index:
        result["ruleIndex"] = index[diagnostic.code]
    if file:
        place = {"artifactLocation": {"uri": relative_uri(file)}, "region": {"startLine": line}}
        result["locations"] = [{"physicalLocation": place}]
    return result


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())
