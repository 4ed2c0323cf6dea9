"""What a checkpoint is, in words: the text and the JSON of ``ckptdoctor inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckptdoctor.keys import fold, printable
from ckptdoctor.reports.finding import BUDGET, Options, add_diagnostic, one_line
from ckptdoctor.reports.page import Page, cut, key_cell, wrap
from ckptdoctor.trees import ParamTree
from ckptdoctor.words import count, human, shape_text, tree_words
from ckptdoctor.wrappers import BY_SEGMENT, wrapper_counts

if TYPE_CHECKING:
    from ckptdoctor.formats.base import Archive, StateDict

FORMAT = 1  # version of the JSON schema
# Folded lines of one state dict, entries of the rest: from roomy to tight.
ROOM = ((16, 8), (10, 5), (6, 4), (3, 3), (0, 2))
STATE_DICTS = 6  # shown without -v


def size_text(n: int) -> str:
    """Bytes in words: "97.8 MB" (1 MB = 10^6 bytes)."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return count(n, "byte")


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


def origin(archive: Archive) -> list[str]:
    """Where it was saved from, as far as the file tells: torch's version, wrappers, devices."""
    trees = [sd.tree for sd in archive.state_dicts]
    words = [f"torch {printable(archive.hints['torch'])}"] if "torch" in archive.hints else []
    segments = dict.fromkeys(s for tree in trees for s in wrapper_counts(tree.specs))
    words += [f"under {BY_SEGMENT[s].writer} (`{s}.`)" for s in segments]
    devices = dict.fromkeys(spec.device for tree in trees for spec in tree.specs.values())
    if devices and list(devices) != ["cpu"]:
        words.append("on " + ", ".join(printable(d) for d in devices))
    hidden = ("torch", "root", "zip_version", "byteorder")
    words += [f"{printable(k)} {printable(v)}" for k, v in archive.hints.items() if k not in hidden]
    return words


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


def inspect_concise(archive: Archive) -> str:
    """One line for the file, one for each state dict, one for each finding."""
    file = printable(archive.path)
    lines = [f"{file}: {archive.description}, {size_text(archive.size)}, {count(archive.tensors, 'tensor')}"]
    for sd in archive.state_dicts:
        lines.append(f"{file}: state dict `{printable(sd.path)}`: {tree_words(sd.tree)}")
    lines += [f"{file}: {d.code} {d.title}" for d in archive.diagnostics]
    return "\n".join(lines)


def inspect_dict(archive: Archive) -> dict[str, Any]:
    """Plain data for JSON; ``tensors`` counts the keys that hold a tensor, wherever they are."""
    return {
        "format": FORMAT,
        "file": archive.path,
        "kind": archive.format,
        "description": archive.description,
        "size": archive.size,
        "tensors": archive.tensors,
        "state_dicts": [_state_dict_dict(sd) for sd in archive.state_dicts],
        "rest": dict(archive.rest),
        "hints": dict(archive.hints),
        "saved": origin(archive),
        "globals": list(archive.globals),
        "unknown_globals": list(archive.unknown_globals),
        "storages": len(archive.storages),
        "diagnostics": [d.to_dict() for d in archive.diagnostics],
    }


def _state_dict_dict(state_dict: StateDict) -> dict[str, Any]:
    tree = state_dict.tree
    return {
        "path": state_dict.path,
        "note": state_dict.note,
        "keys": len(tree),
        "values": tree.numel,
        "tree": tree.digest,
        "ordered": tree.ordered,
        "ties": [list(group) for group in tree.ties],
        "versions": dict(tree.versions),
        "extra": dict(tree.extra),
        "tensors": {key: tensor_dict(tree, key) for key in tree.specs},
    }


def tensor_dict(tree: ParamTree, key: str) -> dict[str, Any]:
    """One tensor's spec; strides and offset count elements, ``strides`` null is contiguous."""
    spec = tree[key]
    strides: Sequence[int] | None = spec.strides
    return {
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "strides": list(strides) if strides is not None else None,
        "offset": spec.offset,
        "device": spec.device,
        "storage": spec.storage,
        "kind": spec.kind,
        "layout": spec.layout,
    }


__all__ = ["folded_tree", "human", "inspect_concise", "inspect_dict", "inspect_page", "size_text"]
