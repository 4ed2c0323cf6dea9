"""The text of ``ckptdoctor diff``: `-` the first, `+` the second, `~` both but different."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ckptdoctor.keys import fold, printable
from ckptdoctor.reports.finding import Options
from ckptdoctor.reports.page import Page, key_cell
from ckptdoctor.rules.words import count, human, shape_text
from ckptdoctor.treediff import TreeDiff
from ckptdoctor.trees import ParamTree

SECTION = 8  # lines of one kind shown without -v


def diff_page(diff: TreeDiff, options: Options | None = None) -> Page:
    """Folded differences; the tally last."""
    options = options or Options()
    page = Page()
    for mark, style, name, tree in (("-", "minus", diff.first, diff.a), ("+", "plus", diff.second, diff.b)):
        size = f"{count(len(tree), 'tensor')}, {human(tree.numel)} values"
        page.add((f"{mark} {printable(name)}", style), (f"  {size}", "grey"))
    page.add("")
    a, b = diff.a, diff.b
    _section(page, _rows(diff.removed, lambda k: _spec(a, k)), "-", "minus", options)
    _section(page, _rows(diff.added, lambda k: _spec(b, k)), "+", "plus", options)
    shapes = _rows(diff.reshaped, lambda k: f"{shape_text(a[k].shape)}  ->  {shape_text(b[k].shape)}")
    _section(page, shapes, "~", "warning", options)
    dtypes = _rows(diff.recast, lambda k: f"{a[k].dtype}  ->  {b[k].dtype}")
    _section(page, dtypes, "~", "warning", options)
    _section(
        page,
        [(" = ".join(map(printable, g)), "tied on one side only") for g in diff.retied],
        "~",
        "warning",
        options,
    )
    page.add((_tally(diff), "title"))
    return page


def _spec(tree: ParamTree, key: str) -> str:
    return f"{tree[key].dtype} {shape_text(tree[key].shape)}"


def _rows(keys: Iterable[str], words: Callable[[str], str]) -> list[tuple[str, str]]:
    # Keys fold together only when the words behind them are the same.
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(words(key), []).append(key)
    return [(printable(f.text), text) for text, members in groups.items() for f in fold(members)]


def _section(page: Page, rows: Sequence[tuple[str, str]], mark: str, style: str, options: Options) -> None:
    shown = rows if options.verbose or len(rows) <= SECTION + 1 else rows[:SECTION]
    if not rows:
        return
    column = min(max(len(r[0]) for r in shown), options.width - 34)
    for name, words in shown:
        room = 10**6 if options.verbose else options.width - 2
        cell = key_cell(name, column, f"  {words}", room)
        page.add((f"{mark} ", style), (cell, style), (f"  {words}", "grey"))
    if len(shown) < len(rows):
        page.add((f"  and {count(len(rows) - len(shown), 'more line')} like it (-v)", "grey"))
    page.add("")


def _tally(diff: TreeDiff) -> str:
    if not diff:
        return f"The same: {count(len(diff.a), 'key')}, shapes, dtypes and ties."
    parts = [
        (len(diff.removed), "only in the first"),
        (len(diff.added), "only in the second"),
        (len(diff.reshaped), "of another shape"),
        (len(diff.recast), "of another dtype"),
        (len(diff.retied), "tied on one side only"),
    ]
    return ", ".join(f"{n:,} {words}" for n, words in parts if n) + "."


def diff_concise(diff: TreeDiff) -> str:
    """One line."""
    return f"{printable(diff.first)} {printable(diff.second)}: {_tally(diff)}"
