"""Annotations for GitHub Actions: workflow commands on stdout.

Source: docs.github.com, "Workflow commands for GitHub Actions"; the escapes are those of ``@actions/core``
(`packages/core/src/command.ts`). A step shows at most 10 errors and 10 warnings, so there is one annotation a
finding, never one a key, and the last one says how many are left.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckptdoctor.contract.report import CheckReport
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.keys import printable
from ckptdoctor.reports.check_words import concise
from ckptdoctor.reports.places import file_and_line, message

LIMIT = 10  # annotations of one kind that a step shows
MAX_MESSAGE = 4000  # characters; GitHub cuts at 64 kB, a reader long before
_KINDS = {"error": "error", "warning": "warning", "note": "notice"}


def check_text(report: CheckReport) -> str:
    """Annotations, then the report in one line each, which the log shows."""
    lines = finding_commands(report.diagnostics)
    lines += [
        command("error", f"could not check: {problem}", title="ckptdoctor") for problem in report.problems
    ]
    lines += [harmless(line) for words in concise(report) for line in words.splitlines()]
    return "".join(f"{line}\n" for line in lines)


def finding_commands(diagnostics: Sequence[Diagnostic]) -> list[str]:
    """One workflow command for each finding, within what one step may show."""
    lines: list[str] = []
    for severity, kind in _KINDS.items():
        found = [d for d in diagnostics if d.severity == severity]
        shown = found if len(found) <= LIMIT else found[: LIMIT - 1]
        lines += [annotation(d) for d in shown]
        if len(found) > len(shown):
            rest = len(found) - len(shown)
            words = f"{rest} more {severity}s are not shown here; the log and the step summary have all"
            lines.append(command(kind, words, title="ckptdoctor"))
    return lines


def annotation(diagnostic: Diagnostic) -> str:
    """``::error file=ckpt/net.tree,line=4,title=...::...`` for one finding."""
    file, line = file_and_line(diagnostic.place)
    title = f"{diagnostic.code} {diagnostic.name}"
    properties = {"file": printable(file), "line": str(line)} if file else {}
    return command(_KINDS[diagnostic.severity], message(diagnostic), **properties, title=title)


def command(kind: str, text: str, **properties: str) -> str:
    """One workflow command; whatever its parts hold, they stay its parts."""
    words = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    safe = "\n".join(printable(line) for line in text.splitlines())
    cut = safe if len(safe) <= MAX_MESSAGE else safe[: MAX_MESSAGE - 3] + "..."
    return f"::{kind} {words}::{_data(cut)}"


def harmless(line: str) -> str:
    """A line of a log that no runner takes for a command: neither ``::command::`` nor ``##[command]``."""
    text = printable(line).replace("##[", "#\\x23[")
    return f"\\x3a{text.lstrip()[1:]}" if text.lstrip().startswith("::") else text


def _data(text: str) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.replace("##[", "#%23[")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
