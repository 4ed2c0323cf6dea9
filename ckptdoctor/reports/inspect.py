"""What a checkpoint is, in words: the text of ``ckptdoctor inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptdoctor.keys import fold, printable
from ckptdoctor.reports.contents import origin, size_text
from ckptdoctor.reports.finding import BUDGET, Options, add_diagnostic, one_line
from ckptdoctor.reports.page import Page, cut, key_cell, wrap
from ckptdoctor.trees import ParamTree
from ckptdoctor.words import count, shape_text, tree_words

if TYPE_CHECKING:
    from ckptdoctor.formats.base import Archive, StateDict

# Folded lines of one state dict, entries of the rest: from roomy to tight.
ROOM = ((16, 8), (10, 5), (6, 4), (3, 3), (0, 2))
STATE_DICTS = 6  # shown without -v


def inspect_page(archive: Archive, options: Options | None = None) -> Page:
    """What it is, where it comes from, its state dicts, what else is inside, what is unusual."""
    options = options or Options()
    for lines, rest in ROOM:
        page = _inspect_page(archive, options, lines, rest)
        if options.verbose or len(page.lines) <= BUDGET:
            break
    return page


def _inspect_page(archive: Archive, options: Options, lines: int, rest: int) -> Page:
    page = Page()
    page.add(
        (printable(archive.path), "title"),
        f"  {printable(archive.description)}, {size_text(archive.size)}, {count(archive.tensors, 'tensor')}",
    )
    saved = "; ".join(origin(archive))
    for n, line in enumerate(wrap(saved, options.width - 9) if saved else ()):
        page.add(("         " if n else "  saved: ", "grey"), line)
    shown = archive.state_dicts if options.verbose else archive.state_dicts[:STATE_DICTS]
    for state_dict in shown:
        _state_dict(page, state_dict, options, lines)
    if len(shown) < len(archive.state_dicts):
        more = count(len(archive.state_dicts) - len(shown), "more state dict")
        page.add("")
        page.add((f"and {more} (-v)", "grey"))
    _rest(page, archive, options, rest)
    if archive.diagnostics:
        page.add("")
    for diagnostic in archive.diagnostics:
        # In a tight report a finding takes one line.
        if lines > 3 or options.verbose:
            add_diagnostic(page, diagnostic, options, 4)
        else:
            one_line(page, diagnostic, options)
    return page


def _state_dict(page: Page, state_dict: StateDict, options: Options, lines: int) -> None:
    page.add("")
    path = f"`{printable(state_dict.path)}`" if state_dict.path else "the file itself"
    page.add((f"state dict: {path}", "title"), (f"  {tree_words(state_dict.tree)}", "grey"))
    if state_dict.note:
        page.add((f"  {printable(state_dict.note)}", "grey"))
    rows = folded_tree(state_dict.tree)
    limit = len(rows) if options.verbose else lines
    # One line more than the limit is not worth a line that says so.
    shown = rows if len(rows) <= limit + 1 else rows[:limit]
    column = min(max((len(r[0]) for r in shown), default=0), options.width - 34)
    for text, spec, n, size in shown:
        many = f"{n} x {size}" if n > 1 else size
        room = 10**6 if options.verbose else options.width - 2
        cell = key_cell(text, column, f"  {spec}  {many}", room)
        page.add(f"  {cell}  {spec}", (f"  {many}", "grey"))
    if len(shown) < len(rows):
        keys = sum(r[2] for r in rows[limit:])
        more = f"and {count(keys, 'more key')}" if shown else count(keys, "key")
        page.add((f"  {more} in {count(len(rows) - limit, 'line')} (-v)", "grey"))


def folded_tree(tree: ParamTree) -> list[tuple[str, str, int, str]]:
    """Rows (folded keys, dtype and shape, how many, size each), in the order of their first key.

    Keys fold together only when their specs agree, so a row never hides a different shape.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for key, spec in tree.specs.items():
        groups.setdefault((spec.dtype, spec.shape), []).append(key)
    order = {key: i for i, key in enumerate(tree.specs)}
    rows = []
    for (dtype, shape), keys in groups.items():
        size = size_text(tree[keys[0]].nbytes)
        for f in fold(keys):
            row = (printable(f.text), f"{dtype} {shape_text(shape)}", f.count, size)
            rows.append((min(order[k] for k in f.keys), row))
    return [row for _, row in sorted(rows)]


def _rest(page: Page, archive: Archive, options: Options, lines: int) -> None:
    if not archive.rest:
        return
    page.add("")
    page.add(("also inside", "title"))
    items = list(archive.rest.items())
    shown = items if options.verbose or len(items) <= lines + 1 else items[:lines]
    column = min(max(len(printable(k)) for k, _ in shown), 30)
    for key, words in shown:
        room = options.width - column - 4
        page.add(f"  {cut(printable(key), column):{column}}  ", (cut(printable(words), room), "grey"))
    if len(shown) < len(items):
        page.add((f"  and {count(len(items) - len(shown), 'more entry', 'more entries')} (-v)", "grey"))
