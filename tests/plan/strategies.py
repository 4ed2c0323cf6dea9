"""Random trees and random alignments between them."""

from __future__ import annotations

from hypothesis import strategies as st

from ckptdoctor.align.model import Alignment, Match, Strip, Unused
from ckptdoctor.trees import ParamTree, TensorSpec

SEGMENTS = st.sampled_from(
    ["layer1", "layer2", "blocks", "0", "1", "2", "3", "10", "norm0", "norm1", "norm2", "conv", "weight",
     "bias", "module", "a{b}", "x,y", "st*r", "007", "", "q\n", "\u202e", "back\\slash"]
)  # fmt: skip
KEYS = st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join)
FAMILIES = st.builds(
    lambda head, n, leaf, start: [f"{head}.{i}.{leaf}" for i in range(start, start + n)],
    st.sampled_from(["layers", "h", "enc.blocks", "f"]),
    st.integers(1, 6),
    st.sampled_from(["w", "b", "mlp.fc1.w", "mlp.fc2.w"]),
    st.integers(0, 2),
)
KEY_LISTS = st.builds(
    lambda loose, families: sorted({*loose, *(k for f in families for k in f)}),
    st.lists(KEYS, max_size=12),
    st.lists(FAMILIES, max_size=4),
)
SHAPE = TensorSpec((2, 3))


@st.composite
def renamings(draw: st.DrawFn) -> dict[str, str]:
    """``{old name: new name}``: a permutation of names, moves of subtrees, or anything at all."""
    old = draw(KEY_LISTS)
    kind = draw(st.sampled_from(["permutation", "rotation", "free", "moved"]))
    if kind == "permutation":
        return dict(zip(old, draw(st.permutations(old)), strict=True))
    if kind == "rotation":
        return dict(zip(old, [*old[1:], *old[:1]], strict=True))
    if kind == "moved":
        return {k: move(k, draw(st.integers(0, 3))) for k in old}
    new = draw(st.lists(KEYS, min_size=len(old), max_size=len(old), unique=True))
    return dict(zip(old, new, strict=True))


def move(key: str, how: int) -> str:
    """A new name that tells the old one, so that no two meet."""
    return [key, f"new.{key}", f"{key}.end", f"n{how}.{key.replace('.', '..')}"][how]


@st.composite
def alignments(draw: st.DrawFn) -> tuple[Alignment, ParamTree, ParamTree]:
    """Renames, drops, kept buffers, splits, joins, ties and casts, all decided."""
    pairs = draw(renamings())
    source, target, matches, unused = {}, {}, {}, {}
    shared = ""
    for number, (old, new) in enumerate(pairs.items()):
        kind = draw(st.sampled_from(["copy"] * 6 + ["transpose", "drop", "keep", "cast", "shared", "tie"]))
        if kind != "keep":
            source[old] = TensorSpec((2, 3), "float16" if kind == "cast" else "float32")
        if kind == "drop":
            unused[old] = Unused(old, draw(st.sampled_from(["optimizer", "aux head"])), True)
            continue
        target[new] = TensorSpec((3, 2) if kind == "transpose" else (2, 3), storage=str(number))
        if kind == "keep":
            matches[new] = Match(new, "kept", evidence=("derived",))
            continue
        ops = ("transpose(0,1)",) if kind == "transpose" else ()
        matches[new] = Match(new, "safe", (old,), ops, ("names",))
        if kind in ("tie", "shared") and shared and f"tied.{new}" not in pairs.values():
            other = f"tied.{new}"
            target[other] = TensorSpec((2, 3), storage=str(number) if kind == "tie" else "")
            matches[other] = Match(other, "safe", (old,), (), ("tied",))
        shared = old if not ops else shared
    if len(source) > 2 and draw(st.booleans()):
        first = sorted(source)[:2]
        if all(k not in unused and source[k].dtype == "float32" for k in first):
            target["joined"] = TensorSpec((4, 3))
            matches["joined"] = Match("joined", "safe", tuple(first), ("concat(0)",), ("joined",))
    matches = {k: matches[k] for k in target}
    return Alignment(matches, unused), ParamTree(source), ParamTree(target)


def wrapped(pairs: dict[str, str], prefix: str) -> tuple[Alignment, ParamTree, ParamTree]:
    """Plain renames of keys that all carry a wrapper's prefix."""
    source = ParamTree({f"{prefix}.{old}": SHAPE for old in pairs})
    target = ParamTree(dict.fromkeys(pairs.values(), SHAPE))
    matches = {new: Match(new, "safe", (f"{prefix}.{old}",), (), ("names",)) for old, new in pairs.items()}
    return (
        Alignment(matches, {}, (Strip(prefix, "torch.nn.DataParallel", False, len(pairs)),)),
        source,
        target,
    )
