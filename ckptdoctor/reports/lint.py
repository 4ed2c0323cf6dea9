"""What ``ckptdoctor lint`` found, in the manner of a compiler."""

from __future__ import annotations

from ckptdoctor.formats.base import Archive
from ckptdoctor.keys import printable
from ckptdoctor.reports.finding import Options, add_diagnostic
from ckptdoctor.reports.page import Page
from ckptdoctor.rules.words import count


def lint_page(archive: Archive, options: Options | None = None) -> Page:
    """The findings, then a tally."""
    options = options or Options()
    page = Page()
    for diagnostic in archive.diagnostics:
        add_diagnostic(page, diagnostic, options)
    file = printable(archive.path)
    if not archive.diagnostics:
        page.add((f"{file}: nothing that will be regretted.", "title"))
        return page
    words = []
    for severity in ("error", "warning", "note"):
        n = sum(d.severity == severity for d in archive.diagnostics)
        words += [count(n, severity)] if n else []
    page.add((f"Found {', '.join(words)} in {file}.", "title"))
    return page
