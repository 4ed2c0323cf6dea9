"""The words of plans, told from their own docstrings: for ``ckptdoctor explain`` and for docs/ops.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import cleandoc

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import OPS, Op, parse_chain
from ckptdoctor.ops.base import Shape, show
from ckptdoctor.ops.each import Each
from ckptdoctor.reports.page import Page

EFFECTS = {
    "exact": "every value stays as it is",
    "computed": "values are arithmetic, the function of the network stays",
    "lossy": "values are invented, mixed or left out, so it needs a decision",
}

HEAD = """# The words of plans

What `ops` in a `transform` step of a [plan](plan.md) can say. Ops are written one after the other, `a|b`.
Each knows without values which shape and dtype comes out, and refuses what it does not fit.
`ckptdoctor explain rope` prints one of them. This page is made from the ops' own docstrings.

What shapes cannot show is never inferred from shapes: a recipe that knows the names on both sides, a value
from a config or a decision chooses such an op. After the load all ops are run again on the file's tensors,
and the result is compared bit for bit.
"""


@dataclass(frozen=True)
class OpEntry:
    """What there is to say about one op."""

    name: str
    text: str  # the docstring, unindented
    effect: str
    example: str
    way_back: str

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return {"name": self.name, "text": self.text, **dict(self.facts())}

    def facts(self) -> list[tuple[str, str]]:
        """What follows the docstring."""
        return [("effect", self.effect), ("example", self.example), ("way back", self.way_back)]


def find_op(name: str) -> type[Op] | None:
    """The op that is written so, or None."""
    return Each if name == Each.NAME else OPS.get(name)


def op_entry(op: type[Op]) -> OpEntry:
    """The entry of an op; its first example shows what it does and how it is undone."""
    text, shapes = op.EXAMPLES[0]
    chain = parse_chain(text)
    part = ", takes a part of its source" if op.PARTIAL else ""
    made = f"`{text}` makes {show(chain.out_shape(shapes))} of {' and '.join(map(show, shapes))}"
    return OpEntry(
        op.NAME,
        cleandoc(op.__doc__ or ""),
        f"{chain.effect}{part}: {EFFECTS[chain.effect]}",
        made,
        _way_back(text, shapes, op.PARTIAL),
    )


def _way_back(text: str, shapes: Sequence[Shape], partial: bool) -> str:
    if partial:
        return "together with the other parts of its source, if they are all used; alone there is none"
    try:
        undo = parse_chain(text).inverse(shapes)
    except PlanError as error:
        return "none: " + re.sub(r"^.*cannot be undone: ", "", str(error))
    return " and ".join(f"`{chain}`" for chain in dict.fromkeys(undo))


def op_page(entry: OpEntry) -> Page:
    """For ``ckptdoctor explain``."""
    page = Page()
    page.add((entry.name, "title"), ("  op of plans", "grey"))
    page.add("")
    for line in entry.text.replace("``", "`").splitlines():
        page.add(line)
    page.add("")
    for word, what in entry.facts():
        page.add((f"{word}: ", "help"), what)
    return page


def ops_markdown() -> str:
    """The text of docs/ops.md."""
    lines = [HEAD]
    ops: tuple[type[Op], ...] = (*OPS.values(), Each)
    for module in dict.fromkeys(op.__module__ for op in ops):
        title = (sys.modules[module].__doc__ or "").splitlines()[0]
        lines += [f"## {re.sub(r':.*', '', title).rstrip('.')}", ""]
        for op in (o for o in ops if o.__module__ == module):
            entry = op_entry(op)
            lines += [f"### {entry.name}", "", _markdown(entry.text), ""]
            lines += [f"- {word}: {what}" for word, what in entry.facts()] + [""]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """A docstring as Markdown: one kind of backticks, a paragraph for the source."""
    return re.sub(r"\s+Source:", "\n\nSource:", text.replace("``", "`"))
