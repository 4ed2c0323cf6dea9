"""Styled lines, apart from how they are written: a report makes a Page, `emit` puts it on a stream.

A Page is plain data (text and style names), so that it can be tested without a terminal and printed without
rich where that is not installed or not wanted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TextIO

Span = tuple[str, str]  # text, style name

# Style name -> rich style. The names say what the words are, not how they look.
STYLES = {
    "": "",
    "error": "bold red",
    "warning": "bold yellow",
    "note": "bold cyan",
    "title": "bold",
    "bar": "blue",
    "grey": "bright_black",
    "minus": "red",
    "plus": "green",
    "caret": "bold red",
    "fix": "green",
    "help": "cyan",
}


@dataclass
class Page:
    """Lines of spans."""

    lines: list[list[Span]] = field(default_factory=list)

    def add(self, *spans: Span | str) -> None:
        """One line; a bare string has no style."""
        self.lines.append([s if isinstance(s, tuple) else (s, "") for s in spans])

    def plain(self) -> str:
        """The text without styles."""
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self.lines)


def emit(page: Page, stream: TextIO) -> None:
    """Write the page; colours only on a terminal (or FORCE_COLOR), never with NO_COLOR."""
    if not wants_colour(stream):
        stream.write(page.plain() + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False, soft_wrap=True, markup=False, emoji=False)
    for line in page.lines:
        console.print(Text.assemble(*((text, STYLES[style]) for text, style in line)))


def wants_colour(stream: TextIO) -> bool:
    """Whether colours are welcome there; see no-color.org and force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def width(stream: TextIO | None = None) -> int:
    """Columns to write for: the terminal's between 60 and 120, else 80."""
    import shutil

    if stream is not None and not stream.isatty():
        return 80
    return min(max(shutil.get_terminal_size((80, 24)).columns, 60), 120)


def cut(text: str, columns: int, tail: float = 0.33) -> str:
    """The text, or its two ends around ``...`` when longer; ``tail`` is the share of its end."""
    if len(text) <= columns:
        return text
    end = max(int((columns - 3) * tail), 1)
    return f"{text[: columns - 3 - end]}...{text[-end:]}"


def cut_key(key: str, columns: int) -> str:
    """A key or fold cut so that its end, which tells more, stays."""
    return cut(key, columns, 0.62)


def key_cell(key: str, column: int, behind: str, columns: int) -> str:
    """A key padded to its column; cut only when the line with what is ``behind`` would be too long."""
    room = max(column, columns - len(behind))
    return f"{cut_key(key, room):{column}}"


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most so many columns, broken at blanks; a longer word stays whole."""
    import textwrap

    return textwrap.wrap(text, max(columns, 20), break_long_words=False, break_on_hyphens=False) or [""]
