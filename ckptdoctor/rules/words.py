"""Words that the rules share: counts, shapes, folded key lists, flags that can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence

from ckptdoctor.diagnostics import Help, Line
from ckptdoctor.keys import fold, printable
from ckptdoctor.keys.covering import cover
from ckptdoctor.trees import TensorSpec
from ckptdoctor.words import count, dtype_words, human, quoted, shape_text, tree_words

__all__ = [
    "columns", "count", "dtype_words", "flag", "flag_helps", "human", "key_lines", "quoted", "shape_text",
    "shell_words", "tree_words",
]  # fmt: skip

# Evidence is data and may be long; it is cut here only where nobody would read on. Reports cut earlier.
MAX_LINES = 200


def flag(option: str, value: str) -> str:
    """``--reinit 'fc.*'``, quoted so that a POSIX shell passes exactly ``value``."""
    return f"--{option} {shlex.quote(printable(value))}"


def shell_words(text: str) -> list[str]:
    """The words of a command line as a shell splits them; none when it could not (an odd quote)."""
    try:
        return shlex.split(text)
    except ValueError:
        return []


def key_lines(
    keys: Iterable[str], mark: str = " ", specs: Mapping[str, TensorSpec] | None = None
) -> tuple[Line, ...]:
    """The keys folded exactly, one line a fold; with ``specs`` the shape behind it when all agree."""
    folds = fold(list(keys))
    lines = [_fold_line(f.text, f.keys, mark, specs) for f in folds[:MAX_LINES]]
    if len(folds) > MAX_LINES:
        rest = sum(f.count for f in folds[MAX_LINES:])
        lines.append(Line(f"... and {count(rest, 'more key')}", " "))
    return tuple(lines)


def _fold_line(text: str, keys: Sequence[str], mark: str, specs: Mapping[str, TensorSpec] | None) -> Line:
    words = printable(text)
    if specs is not None:
        shapes = {specs[k].shape for k in keys if k in specs}
        if len(shapes) == 1:
            words += f"   {shape_text(shapes.pop())}"
    return Line(words, mark)  # type: ignore[arg-type]  # one of the four


def flag_helps(
    option: str, keys: Collection[str], universe: Collection[str], text: str, limit: int = 6
) -> tuple[Help, ...]:
    """One pastable line that names exactly ``keys``; several patterns repeat the flag."""
    patterns = cover(keys, universe)
    if len(patterns) > limit:
        return tuple(Help(flag(option, p), text) for p in patterns)
    return (Help(" ".join(flag(option, p) for p in patterns), text),)


def columns(rows: Sequence[tuple[str, str]], marks: str = " ") -> list[Line]:
    """Pairs of words as aligned lines; ``marks`` has one mark for all or one a row."""
    first = max((len(a) for a, _ in rows), default=0)
    each = marks * len(rows) if len(marks) == 1 else marks
    return [Line(f"{a:{first}}   {b}".rstrip(), m) for (a, b), m in zip(rows, each, strict=True)]  # type: ignore[arg-type]  # of the four
