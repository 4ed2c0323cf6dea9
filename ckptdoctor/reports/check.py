"""The report of `ckptdoctor check`: as text here, in the other forms by the renderers beside this file."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TextIO

from ckptdoctor.contract.report import CheckReport, Row
from ckptdoctor.keys import printable
from ckptdoctor.reports.check_words import commands, concise, printable_lines, release_words, verdict
from ckptdoctor.reports.finding import ALIKE, Options, add_diagnostic, one_line
from ckptdoctor.reports.page import Page, emit, width

FULL = 6  # findings in full form; further ones of the same code take a line each


def write_report(report: CheckReport, form: str, stream: TextIO, *, verbose: bool = False) -> None:
    """Write the report in one of the forms of ``ckptdoctor check --format``."""
    if form == "text":
        emit(check_page(report, Options(width=width(stream), verbose=verbose)), stream)
        return
    if form == "concise":
        stream.write("".join(f"{line}\n" for line in concise(report)))
        return
    if form == "json":
        from ckptdoctor.reports.json import write

        write(report.to_dict(), stream)
        return
    from ckptdoctor.reports import github, gitlab, junit, markdown, sarif

    renderers = {
        "github": github.check_text,
        "markdown": markdown.check_text,
        "sarif": sarif.check_text,
        "junit": junit.check_text,
        "gitlab": gitlab.check_text,
    }
    stream.write(renderers[form](report))


def write_step_summary(report: CheckReport) -> None:
    """Append to the file that GitHub Actions names, if it names one."""
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file:
        from ckptdoctor.reports.markdown import check_text

        with open(file, "a", encoding="utf-8", newline="\n") as stream:
            stream.write(check_text(report))


def write_migrations(report: CheckReport, paths: list[str], write: bool) -> int:
    """What `ckptdoctor migrate` says; its exit code."""
    stuck = [d for d in report.diagnostics if d.code == "CKD703" and d.severity == "error"]
    page = Page()
    for diagnostic in stuck:
        add_diagnostic(page, diagnostic, Options(width=width(sys.stderr)))
    if page.lines:
        emit(page, sys.stderr)
    if write:
        for path in paths:
            print(f"wrote {path}; review it and commit it")
    else:
        for proposal in report.proposals:
            print(f"# {printable(proposal.path)}")
            print(proposal.text)
    if not report.proposals and not stuck:
        print("no migration is missing")
    return int(bool(stuck) or (bool(report.proposals) and not write))


def check_page(report: CheckReport, options: Options | None = None) -> Page:
    """Findings first, then a line for each release, then what was checked."""
    options = options or Options()
    page = Page()
    seen: Counter[str] = Counter()
    for diagnostic in report.diagnostics:
        seen[diagnostic.code] += 1
        if options.verbose or (seen[diagnostic.code] <= FULL and diagnostic.severity != "note"):
            add_diagnostic(page, diagnostic, options, ALIKE)
        else:
            one_line(page, diagnostic, options)
    if page.lines and any(text for text, _ in page.lines[-1]):
        page.add("")
    _rows(page, report.rows)
    for note in report.notes:
        page.add((f"note: {note}", "grey"))
    for problem in report.problems:
        page.add(("could not check: ", "error"), printable_lines(problem))
    page.add((verdict(report), "title"))
    for label, command in commands(report):
        page.add((f"  {label}: ", "fix"), command)
    return page


_STYLES = {"compatible": "fix", "migratable": "fix", "accepted": "warning"}


def _rows(page: Page, rows: tuple[Row, ...]) -> None:
    first = max((len(row.unit) for row in rows), default=0)
    second = max((len(release_words(row)) for row in rows), default=0)
    third = max((len(row.verdict) for row in rows), default=0)
    for row in rows:
        what = f"  {printable(row.what)}" if row.what else ""
        page.add(
            f"{row.unit:{first}}  {release_words(row):{second}}  ",
            (f"{row.verdict:{third}}", _STYLES.get(row.verdict, "error")),
            (what, "grey"),
        )
    if rows:
        page.add("")
