"""Words that the rules share: counts, shapes, folded key lists, flags that can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence

from ckptdoctor.diagnostics import Help, Line
from ckptdoctor.keys import escape, fold, printable
from ckptdoctor.trees import ParamTree, TensorSpec

# Evidence is data and may be long; it is cut here only where nobody would read on. Reports cut earlier.
MAX_LINES = 200


def count(n: int, noun: str, plural: str = "") -> str:
    """``count(1, "key")`` is "1 key", ``count(2, "key")`` is "2 keys"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {plural or noun + 's'}"


def human(n: int) -> str:
    """A number of values in words: "25.6 M", "118 k", "64"."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            scale = 1e3 if unit == "k" else size
            return f"{n / scale:.1f} {unit}" if n / scale < 100 else f"{n / scale:.0f} {unit}"
    return str(n)


def shape_text(shape: Sequence[int]) -> str:
    """``(1000, 2048)`` as "1000 x 2048"; no dimensions as "scalar"."""
    return " x ".join(str(n) for n in shape) if shape else "scalar"


def quoted(key: str) -> str:
    """A key in backticks, without control characters."""
    return f"`{printable(key)}`"


def tree_words(tree: ParamTree) -> str:
    """ "320 tensors, 25.6 M values, float32"."""
    dtypes = sorted({s.dtype for s in tree.specs.values()})
    dtype = dtypes[0] if len(dtypes) == 1 else main_dtype(tree)
    return ", ".join(w for w in (count(len(tree), "tensor"), f"{human(tree.numel)} values", dtype) if w)


def main_dtype(tree: ParamTree) -> str:
    """The dtype that holds most of the values, with "mostly" when there are others."""
    sizes: dict[str, int] = {}
    for spec in tree.specs.values():
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.numel
    if not sizes:
        return ""
    best = max(sizes, key=lambda d: sizes[d])
    return f"mostly {best}" if len(sizes) > 1 else best


def flag(option: str, value: str) -> str:
    """``--reinit 'fc.*'``, quoted so that a POSIX shell passes exactly ``value``."""
    return f"--{option} {shlex.quote(printable(value))}"


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
    return Line(words, mark)  # type: ignore[arg-type]


def cover(keys: Collection[str], universe: Iterable[str]) -> list[str]:
    """The fewest patterns that match exactly ``keys`` among ``universe``.

    A module all of whose keys are meant becomes ``module.**``; everything else is a single key.
    """
    wanted = set(keys)
    # A prefix is whole when no key under it is unwanted; the shortest whole prefixes win.
    broken = {p for key in universe if key not in wanted for p in _prefixes(key)}
    out: dict[str, None] = {}
    for key in keys:
        whole = next((p for p in _prefixes(key) if p not in broken), None)
        out[f"{escape(whole)}.**" if whole is not None else escape(key)] = None
    return list(out)


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def flag_helps(
    option: str, keys: Collection[str], universe: Iterable[str], text: str, limit: int = 4
) -> tuple[Help, ...]:
    """One pastable line that names exactly ``keys``; several patterns repeat the flag."""
    patterns = cover(keys, universe)
    if len(patterns) <= limit:
        return (Help(" ".join(flag(option, p) for p in patterns), text),)
    return tuple(Help(flag(option, p), text) for p in patterns[:limit])
