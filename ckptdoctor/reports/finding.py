"""One finding as lines: title, place, evidence, why, fix, help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptdoctor.diagnostics import Diagnostic, Line
from ckptdoctor.keys import printable
from ckptdoctor.reports.page import Page, cut, wrap
from ckptdoctor.words import count

BUDGET = 40  # lines that a report takes by default
ALIKE = 8  # more lines of evidence of one kind than this are folded to one

_MARK_STYLE = {" ": "", "-": "minus", "+": "plus", "^": "caret"}


@dataclass(frozen=True)
class Options:
    """How to show: ``verbose`` shows every line, ``width`` is in columns."""

    width: int = 80
    verbose: bool = False
    kwargs: str = ""  # the model's keyword arguments as given, to be repeated in commands


def add_diagnostic(page: Page, diagnostic: Diagnostic, options: Options, alike: int = ALIKE) -> None:
    """One finding in full form, a blank line behind it."""
    _title(page, diagnostic, options)
    if diagnostic.place:
        page.add(
            ("  --> ", "bar"), printable(diagnostic.place), (f"  {printable(diagnostic.place_note)}", "grey")
        )
    lines = paired(diagnostic.evidence, options.width - 7)
    lines = lines if options.verbose else folded(lines, alike)
    if lines:
        page.add(("   |", "bar"))
        for line in lines:
            _evidence(page, line, options)
    _equals(page, diagnostic, options)
    page.add("")


def _title(page: Page, diagnostic: Diagnostic, options: Options) -> None:
    head = f"{diagnostic.severity}[{diagnostic.code}]"
    first, *rest = wrap(f"{head}: {diagnostic.title}", options.width)
    page.add((head, diagnostic.severity), (first[len(head) :], "title"))
    for more in rest:
        page.add((f"  {more}", "title"))


def paired(lines: Sequence[Line], room: int) -> Sequence[Line]:
    """Three or more pairs of old and new as a table, a line each, where it is wide enough."""
    old, new = lines[::2], lines[1::2]
    table = len(old) > 2 and len(old) == len(new)
    if not table or {line.mark for line in old} != {"-"} or {line.mark for line in new} != {"+"}:
        return lines
    first = max(len(line.text) for line in old)
    if first + 6 + max(len(line.text) for line in new) > room:
        return lines
    return [Line(f"{a.text:{first}}  ->  {b.text}") for a, b in zip(old, new, strict=True)]


def folded(lines: Sequence[Line], alike: int) -> list[Line]:
    """At most ``alike`` lines of evidence, the rest counted."""
    if len(lines) <= alike + 1:
        return list(lines)
    # A pair of lines ("- old", "+ new") is not torn apart.
    stop = alike - 1 if lines[alike].mark in "+^" and lines[alike - 1].mark in " -" else alike
    rest = sum(line.mark != "^" for line in lines[stop:])
    return [*lines[:stop], Line(f"and {count(rest, 'more line')} like it (-v)")]


def _evidence(page: Page, line: Line, options: Options) -> None:
    style = _MARK_STYLE[line.mark]
    mark = f" {line.mark} " if line.mark in "-+" else "   "
    text = printable(line.text)
    room = options.width - 4 - len(mark)
    page.add(("   |", "bar"), (mark + (text if options.verbose else cut(text, room)), style))


def _equals(page: Page, diagnostic: Diagnostic, options: Options) -> None:
    rows: list[tuple[str, str, str]] = []
    if diagnostic.why:
        rows.append(("why: ", "title", diagnostic.why))
    rows += [("note: ", "title", note) for note in diagnostic.notes]
    if diagnostic.fix is not None:
        words = f"{diagnostic.fix.text} [{diagnostic.fix.applicability}]"
        rows.append(("fix: ", "fix", words))
    if rows or diagnostic.helps:
        page.add(("   |", "bar"))
    for label, style, words in rows:
        first, *rest = wrap(printable(words), options.width - 5 - len(label))
        page.add(("   = ", "bar"), (label, style), first)
        for more in rest:
            page.add("     " + " " * len(label) + more)
    _helps(page, diagnostic)


def _helps(page: Page, diagnostic: Diagnostic) -> None:
    column = min(max((len(h.command) for h in diagnostic.helps), default=0), 34)
    for item in diagnostic.helps:
        page.add(
            ("   = ", "bar"),
            ("help: ", "help"),
            f"{item.command:{column}}" + (f"   {printable(item.text)}" if item.text else ""),
        )


def one_line(page: Page, diagnostic: Diagnostic, options: Options) -> None:
    """One finding on one line."""
    head = f"{diagnostic.severity}[{diagnostic.code}]"
    fix = f" [{diagnostic.fix.applicability}]" if diagnostic.fix is not None else ""
    room = options.width - len(head) - len(fix) - 2
    page.add((head, diagnostic.severity), f": {cut(diagnostic.title, room)}", (fix, "fix"))
