"""The report as Markdown, for a step summary or a comment of a pull request.

GitHub refuses a summary of more than 1 MiB as a whole, so it is cut before that. Everything that comes from a
file stands in ``<code>`` with its markup characters as entities, or in a fence that it cannot close.
"""

from __future__ import annotations

import html
import re
from collections import Counter

from ckptdoctor.contract.report import CheckReport, Proposal
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.keys import printable
from ckptdoctor.reports.check_words import checked, commands, release_words

MAX_BYTES = 900_000
MAX_MIGRATION = 60_000  # characters of one migration; longer ones are in the job's log and on the disk
_MARKUP = "`*_~|[]\\@#:!$"  # active in GitHub's Markdown, apart from HTML's own


def check_text(report: CheckReport) -> str:
    """The whole report."""
    parts = [f"### ckptdoctor: {_head(report)}\n"]
    parts += [f"- could not check: {_paragraph(problem)}\n" for problem in report.problems]
    if report.rows:
        parts.append(_table(report))
    parts += [_finding(d) for d in report.diagnostics]
    parts += [_migration(p) for p in report.proposals]
    if report.ok:
        parts.append(f"{_paragraph(checked(report))}.\n")
    for label, words in commands(report):
        parts.append(f"{label}: {code(words)}\n")
    return _fitting(parts)


def _head(report: CheckReport) -> str:
    if report.problems:
        return "could not check everything"
    tally = Counter(row.verdict for row in report.rows if not row.ok)
    words = [f"{n} {'needs a migration' if v == 'migration missing' else v}" for v, n in tally.items()]
    errors = [
        d
        for d in report.diagnostics
        if d.severity == "error" and d.code not in ("CKD702", "CKD703", "CKD711")
    ]
    words += [f"{n} {name}" for name, n in Counter(d.name for d in errors).items()]
    return ", ".join(words) or "all fine"


def _table(report: CheckReport) -> str:
    lines = ["", "| model | release | verdict | what |", "|---|---|---|---|"]
    for row in report.rows:
        what = code(row.what) if row.what else ""
        lines.append(f"| {code(row.unit)} | {code(release_words(row))} | {row.verdict} | {what} |")
    return "\n".join(lines) + "\n\n"


def _finding(diagnostic: Diagnostic) -> str:
    place = f" {code(diagnostic.place)}" if diagnostic.place else ""
    lines = [f"**{diagnostic.severity} {diagnostic.code}**{place}: {_paragraph(diagnostic.title)}", ""]
    if diagnostic.evidence:
        shown = [f"{line.mark} {printable(line.text)}".rstrip() for line in diagnostic.evidence[:40]]
        lines += [fenced("\n".join(shown), "diff"), ""]
    words = [f"why: {diagnostic.why}"] if diagnostic.why else []
    words += [f"note: {note}" for note in diagnostic.notes]
    words += [f"fix: {diagnostic.fix.text}"] if diagnostic.fix is not None else []
    lines += [f"- {_paragraph(w)}" for w in words]
    for item in diagnostic.helps:
        lines.append(
            f"- {code(item.command)} {_paragraph(item.text)}"
            if item.command
            else f"- {_paragraph(item.text)}"
        )
    return "\n".join(lines) + "\n\n"


def _migration(proposal: Proposal) -> str:
    text = proposal.text
    if len(text) > MAX_MIGRATION:
        text = text[:MAX_MIGRATION] + "\n... cut; `ckptdoctor migrate --write` writes all of it"
    return f"<details><summary>{code(proposal.path)}</summary>\n\n{fenced(text, 'toml')}\n\n</details>\n\n"


def code(text: str) -> str:
    """Inline code that holds any text."""
    return f"<code>{_entities(text)}</code>"


def fenced(text: str, language: str) -> str:
    """A fenced block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _entities(text: str) -> str:
    safe = html.escape(printable(text), quote=True)
    return "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in safe.replace("&#x27;", "&apos;"))


def _paragraph(text: str) -> str:
    """Words of ours around `quoted` names of others: the names become code, all else is plain."""
    pieces = re.split(r"`([^`]*)`", " ".join(text.split()))
    return "".join(code(p) if i % 2 else _entities(p) for i, p in enumerate(pieces))


def _fitting(parts: list[str]) -> str:
    kept: list[str] = []
    size = 0
    for number, part in enumerate(parts):
        size += len(part.encode("utf-8", "replace"))
        if size > MAX_BYTES:
            kept.append(f"\n... and {len(parts) - number} more parts, which do not fit into a step summary\n")
            break
        kept.append(part)
    return "".join(kept)
