"""Steps that make other tensors of the same values: fused, split, stacked, normed, transposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from ckptdoctor.testing.history import (
    Draft,
    Folded,
    Fuse,
    Names,
    Normed,
    Path,
    Split,
    Stack,
    Step,
    Transpose,
    Unstack,
)

QKV = ("q_proj", "k_proj", "v_proj")


def children(keys: Sequence[str]) -> dict[Path, list[str]]:
    """Module path -> the names right below it, in order; those that are tensors too."""
    found: dict[Path, dict[str, None]] = {}
    for key in keys:
        parts = tuple(key.split("."))
        for depth in range(len(parts)):
            found.setdefault(parts[:depth], {})[parts[depth]] = None
    return {path: list(names) for path, names in found.items()}


def modules(keys: Sequence[str]) -> list[Path]:
    """The paths of all modules that own tensors, without the root."""
    return [path for path in children(keys) if path]


def submodules(keys: Sequence[str], parent: Path, names: Sequence[str]) -> list[str]:
    """Those of the names that are modules."""
    inner = set(modules(keys))
    return [n for n in names if (*parent, n) in inner]


def lists(draft: Draft) -> list[tuple[Path, list[str]]]:
    """Modules whose children are numbered, and those numbers."""
    keys = list(draft.state)
    found = [(p, submodules(keys, p, names)) for p, names in children(keys).items()]
    return [(p, names) for p, names in found if names and all(n.isdecimal() and n.isascii() for n in names)]


def fuse(draw: st.DrawFn, draft: Draft) -> Step | Several | None:
    """q, k and v in one tensor."""
    keys = list(draft.state)
    found = [p for p, names in children(keys).items() if set(QKV) <= set(names)]
    rows = [(p, leaf) for p in found for leaf in ("weight", "bias")]
    rows = [(p, leaf) for p, leaf in rows if all(".".join((*p, n, leaf)) in draft.state for n in QKV)]
    if not rows:
        return None
    done = draw(st.sampled_from(list(dict.fromkeys(p for p, _ in rows))))
    steps = [
        Fuse(tuple(".".join((*p, n, leaf)) for n in QKV), ".".join((*p, "qkv", leaf)))
        for p, leaf in rows
        if p == done
    ]
    for step in steps[:-1]:
        step.apply(draft)
    return Several(tuple(steps[:-1]), steps[-1])


def gate_up(draw: st.DrawFn, draft: Draft) -> Step | Several | None:
    """Gate and up of every feed-forward in one tensor, gate first."""
    found = [p for p, names in children(list(draft.state)).items() if {"gate_proj", "up_proj"} <= set(names)]
    pairs = [(".".join((*p, "gate_proj", "weight")), ".".join((*p, "up_proj", "weight"))) for p in found]
    pairs = [pair for pair in pairs if all(k in draft.state for k in pair)]
    steps = [Fuse(pair, f"{pair[0].removesuffix('gate_proj.weight')}gate_up_proj.weight") for pair in pairs]
    for step in steps[:-1]:
        step.apply(draft)
    return Several(tuple(steps[:-1]), steps[-1]) if steps else None


def stacked(draw: st.DrawFn, draft: Draft) -> Step | Several | None:
    """A list of experts as one tensor for gate and up, and one for down."""
    for parent, names in lists(draft):
        if not parent or parent[-1] != "experts":
            continue
        head = ".".join(parent)
        leaves = ("gate_proj", "up_proj", "down_proj")
        numbers = sorted(names, key=int)
        each = [[f"{head}.{n}.{leaf}.weight" for n in numbers] for leaf in leaves]
        if not all(k in draft.state for keys in each for k in keys):
            continue
        steps = [
            Stack(tuple(zip(*each[:2], strict=True)), f"{head}.gate_up_proj"),
            Stack(tuple((k,) for k in each[2]), f"{head}.down_proj"),
        ]
        steps[0].apply(draft)
        return Several(steps[:1], steps[1])
    return None


def unstacked(draw: st.DrawFn, draft: Draft) -> Step | Several | None:
    """Experts in one tensor as a list of experts."""
    heads = [k.removesuffix(".gate_up_proj") for k in draft.state if k.endswith(".gate_up_proj")]
    heads = [h for h in heads if f"{h}.down_proj" in draft.state and draft.state[f"{h}.down_proj"].dim() == 3]
    if not heads:
        return None
    head = draw(st.sampled_from(heads))
    count = len(draft.state[f"{head}.down_proj"])
    steps = [
        Unstack(
            f"{head}.{whole}", tuple(tuple(f"{head}.{e}.{n}.weight" for n in names) for e in range(count))
        )
        for whole, names in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",)))
    ]
    steps[0].apply(draft)
    return Several(steps[:1], steps[1])


# Both forms of a weight or spectral norm: what stands behind the module's path.
NORM_FORMS = (
    {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"},
    {
        "weight_orig": "parametrizations.weight.original", "weight_u": "parametrizations.weight.0._u",
        "weight_v": "parametrizations.weight.0._v",
    },
)  # fmt: skip


def norm_form(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Weight and spectral norms in torch's other form, all of them."""
    names = {}
    for old_new in NORM_FORMS:
        for way in (old_new, {new: old for old, new in old_new.items()}):
            names.update(_norm_names(draft, way))
    return Names(tuple(names.items())) if names else None


def _norm_names(draft: Draft, way: Mapping[str, str]) -> dict[str, str]:
    first = next(iter(way))
    heads = [k.removesuffix(first) for k in draft.state if k == first or k.endswith("." + first)]
    return {h + a: h + b for h in heads if all(h + x in draft.state for x in way) for a, b in way.items()}


def folded(draw: st.DrawFn, draft: Draft) -> Step | None:
    """A weight norm removed before saving."""
    old, new = NORM_FORMS[0].keys(), NORM_FORMS[0].values()
    rows = [tuple(_norm_names(draft, dict.fromkeys(names, "")).keys()) for names in (old, new)]
    rows = [row[i : i + 2] for row in rows for i in range(0, len(row), 2)]
    if not rows:
        return None
    size, direction = draw(st.sampled_from(rows))
    head = size.removesuffix("weight_g").removesuffix("parametrizations.weight.original0")
    return Folded(size, direction, f"{head}weight")


def normed(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Saved while a weight norm was on a linear layer, in the old form or the new."""
    back = {s: t for t, ss in draft.truth.items() for s in ss}
    found = [k for k in draft.state if back.get(k) in draft.linears and k.rpartition(".")[2] == "weight"]
    if not found:
        return None
    key = draw(st.sampled_from(found))
    size, direction = draw(st.sampled_from([tuple(NORM_FORMS[0].keys()), tuple(NORM_FORMS[0].values())]))
    head = key.removesuffix("weight")
    return Normed(key, head + size, head + direction)


class Several:
    """Steps of which all but the last are applied already."""

    def __init__(self, done: Sequence[Step], last: Step) -> None:
        self.done, self.last = done, last


def split(draw: st.DrawFn, draft: Draft) -> Step | Several | None:
    """torch's ``in_proj_weight`` as three matrices."""
    found = [k for k in draft.state if k.split(".")[-1] in ("in_proj_weight", "in_proj_bias")]
    if not found:
        return None
    form = draw(st.sampled_from(("{}_proj", "{}")))
    steps = []
    for key in found:
        head, _, leaf = key.rpartition(".")
        dot = head + "." if head else ""
        steps.append(
            Split(key, tuple(f"{dot}{form.format(x)}.{leaf.removeprefix('in_proj_')}" for x in "qkv"))
        )
    for step in steps[:-1]:
        step.apply(draft)
    return Several(tuple(steps[:-1]), steps[-1])


def transpose(draw: st.DrawFn, draft: Draft) -> Step | None:
    """All linear layers stored the other way round, where a shape shows it."""
    if any(len(sources) > 1 for t, sources in draft.truth.items() if t in draft.linears):
        return None  # one whose weight is in parts (a weight norm) would be left, and nothing shows that
    back = {ss[0]: t for t, ss in draft.truth.items() if len(ss) == 1}
    found = [k for k in draft.state if back.get(k) in draft.linears and draft.state[k].dim() == 2]
    if not any(draft.state[k].shape[0] != draft.state[k].shape[1] for k in found):
        return None
    return Transpose(tuple(found))
