"""Words for counts, shapes and trees, which findings and reports share."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdoctor.keys import printable
from ckptdoctor.trees import ParamTree


def count(n: int, noun: str, plural: str = "") -> str:
    """``count(1, "key")`` is "1 key", ``count(2, "key")`` is "2 keys"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {plural or noun + 's'}"


def human(n: int) -> str:
    """A number of values in words: "25.6 M", "118 k", "64"."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            scale = 1e3 if unit == "k" else size
            return f"{n / scale:.1f} {unit}" if n / scale < 100 else f"{n / scale:.0f} {unit}"
    return f"{n:,}"


def shape_text(shape: Sequence[int]) -> str:
    """``(1000, 2048)`` as "1000 x 2048"; no dimensions as "scalar"."""
    return " x ".join(str(n) for n in shape) if shape else "scalar"


def quoted(key: str) -> str:
    """A key in backticks, without control characters."""
    return f"`{printable(key)}`"


def tree_words(tree: ParamTree) -> str:
    """ "320 tensors, 25.6 M values, float32"."""
    return ", ".join(
        w for w in (count(len(tree), "tensor"), f"{human(tree.numel)} values", dtype_words(tree)) if w
    )


def dtype_words(tree: ParamTree) -> str:
    """The dtype of the values, "mostly" the largest when there are several; counters do not count."""
    sizes: dict[str, int] = {}
    for spec in tree.specs.values():
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.numel
    # Integer buffers such as num_batches_tracked are in every float model.
    floats = {d: n for d, n in sizes.items() if "float" in d or "complex" in d}
    sizes = floats or sizes
    best = max(sizes, key=lambda d: sizes[d], default="")
    return f"mostly {best}" if len(sizes) > 1 else best
