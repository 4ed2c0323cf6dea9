"""The terminal report of a diagnosis, in the manner of a compiler: what is wrong, why, what to do."""

from __future__ import annotations

from ckptdoctor.diagnosis import Diagnosis, percent
from ckptdoctor.keys import printable
from ckptdoctor.reports.commands import commands, more_command
from ckptdoctor.reports.finding import ALIKE, BUDGET, Options, add_diagnostic, one_line
from ckptdoctor.reports.page import Page
from ckptdoctor.rules.words import count, human


def diagnosis_page(diagnosis: Diagnosis, options: Options | None = None) -> Page:
    """The whole report; findings first, verdict and tally last, then a command that can be pasted."""
    options = options or Options()
    page = Page()
    alike = ALIKE
    while True:
        page = _page(diagnosis, options, alike)
        if options.verbose or len(page.lines) <= BUDGET or alike <= 2:
            return page
        alike -= 2


def _page(diagnosis: Diagnosis, options: Options, alike: int) -> Page:
    page = Page()
    # In a tight report notes and repeated codes take one line each.
    tight = alike < ALIKE and not options.verbose
    seen: set[str] = set()
    for diagnostic in diagnosis.diagnostics:
        short = not options.verbose and (
            (tight and diagnostic.severity == "note") or (alike <= 4 and diagnostic.code in seen)
        )
        seen.add(diagnostic.code)
        if short:
            one_line(page, diagnostic, options)
        else:
            add_diagnostic(page, diagnostic, options, alike)
    if page.lines and any(text for text, _ in page.lines[-1]):
        page.add("")
    _tally(page, diagnosis, options)
    return page


def _tally(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    file, label = printable(diagnosis.archive.path), printable(diagnosis.target.label)
    tree = diagnosis.target.tree
    if diagnosis.verdict == "compatible":
        size = f"{count(len(tree), 'tensor')}, {human(tree.numel)} values"
        page.add((f"{file} loads into {label} as is: {size}.", "title"))
        return
    page.add((_found(diagnosis), "title"))
    if diagnosis.verdict in ("repairable", "undecided") and diagnosis.alignment is not None:
        share = f"{percent(diagnosis.coverage)} of the model's values"
        loads = "loads" if len(tree) == 1 else "load"
        loaded = f"{len(diagnosis.loaded):,} of {count(len(tree), 'tensor')}"
        page.add(f"After the fixes {loaded} {loads}, {share}.")
    elif diagnosis.verdict == "incompatible":
        other = any(d.code == "CKD307" for d in diagnosis.diagnostics)
        words = f"{file} does not belong to {label}; nothing" if other else f"Nothing of {file}"
        page.add(f"{words} is repaired.")
    page.add("")
    for label_, command in commands(diagnosis, options.kwargs):
        page.add(("  " + label_, "fix"), command)
    more = more_command(diagnosis)
    if more:
        page.add((f"  more: {more}", "grey"))


def _found(diagnosis: Diagnosis) -> str:
    found = diagnosis.diagnostics
    words = []
    for severity in ("error", "warning", "note"):
        n = sum(d.severity == severity for d in found)
        if n:
            words.append(count(n, severity))
    head = f"Found {' and '.join(words)}" if len(words) < 3 else f"Found {words[0]}, {words[1]}, {words[2]}"
    safe = sum(d.fix is not None and d.fix.applicability == "safe" for d in found)
    yours = sum(d.severity == "error" and d.fix is None for d in found)
    if not found:
        return f"{diagnosis.verdict.capitalize()}."
    parts = [f"{safe} with a safe fix"] if safe else []
    if yours and diagnosis.verdict == "undecided":
        parts.append(f"{yours} for you to decide")
    return f"{head}: {', '.join(parts)}." if parts else f"{head}."
