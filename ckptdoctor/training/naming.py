"""Which checkpoint key each saved parameter is: by its saved name, else by orders that have to agree.

``torch.optim`` saves positions. Two orders are known of them without names: that of the state dict in the
file, and that in which the optimizer at hand lists its parameters. Among parameters of one shape nothing
else tells them apart, so where the two orders disagree a person is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.keys import printable
from ckptdoctor.training.answers import Answers
from ckptdoctor.training.findings import finding, some
from ckptdoctor.training.saved import Saved
from ckptdoctor.trees import ParamTree
from ckptdoctor.wrappers import strip_key

BUFFER_LEAVES = frozenset({
    "running_mean", "running_var", "num_batches_tracked", "position_ids", "inv_freq", "masked_bias",
    "relative_position_index", "attn_mask", "n_averaged",
})  # fmt: skip

Way = tuple[tuple[str, ...], tuple[str, ...]]  # checkpoint keys, op texts


@dataclass(frozen=True)
class Sides:
    """What naming and carrying need to know: the checkpoint's tree, and how the plan fills the model.

    ``ways``: model key -> (checkpoint keys, ops), for each parameter that is loaded. ``own``: model keys
    that keep their initial values. ``listed``: the optimizer's parameters as model keys, by group.
    """

    source: ParamTree
    target: ParamTree
    ways: Mapping[str, Way]
    own: frozenset[str]
    listed: tuple[tuple[str, ...], ...]
    kinds: Mapping[str, str] = field(default_factory=dict)  # checkpoint key -> param or buffer, where known

    def first(self, key: str) -> str:
        """The first of the checkpoint keys that are one tensor with this one."""
        return next((group[0] for group in self.source.ties if key in group), key)

    def feeds(self, keys: Iterable[str]) -> list[str]:
        """The checkpoint keys behind these model keys, each once, in order."""
        found = (self.first(s) for key in keys for s in self.ways.get(key, ((), ()))[0])
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Named:
    """Checkpoint key of each saved parameter by position; ``problems`` when that is open."""

    keys: tuple[str, ...] = ()
    how: str = ""
    problems: tuple[Diagnostic, ...] = ()


def name_params(saved: Saved, sides: Sides, answers: Answers) -> Named:
    """Name every saved parameter, or say what is open."""
    if saved.named:
        return _by_names(saved, sides)
    if not saved.slots:
        return Named(how="it has no state yet")
    return _by_order(saved, sides, answers)


def _by_names(saved: Saved, sides: Sides) -> Named:
    names = [p.name or "" for p in saved.params]
    keys = resolve(names, sides.source.specs)
    if keys is None:
        bare = {strip_key(k) for k in sides.source.specs}
        lost = [n for n in names if strip_key(n) not in bare]
        return Named(
            problems=(
                finding(
                    "CKD603",
                    f"{len(lost) or len(names)} of {len(names)} parameters of the saved optimizer are in "
                    "no state dict of the checkpoint",
                    place=saved.where,
                    lines=[some(lost or names)],
                    why="its param_names do not lead to the weights",
                    helps=[("--drop-state '**'", "begin with a fresh optimizer")],
                ),
            )
        )
    keys = [sides.first(k) for k in keys]
    wrong = [
        (key, p.shape)
        for key, p in zip(keys, saved.params, strict=True)
        if p.shape is not None and p.shape != sides.source[key].shape
    ]
    if wrong:
        return Named(problems=(shape_problem(saved, sides, wrong),))
    return Named(tuple(keys), "by the names in the file")


def shape_problem(
    saved: Saved, sides: Sides, wrong: Sequence[tuple[str, tuple[int, ...] | None]]
) -> Diagnostic:
    """CKD602: state of another shape than its parameter."""
    return finding(
        "CKD602",
        f"the saved state of {len(wrong)} parameters has another shape than the parameter",
        place=saved.where,
        lines=[
            f"{printable(k)}: state {list(s or ())}, parameter {list(sides.source[k].shape)}"
            for k, s in wrong[:5]
        ],
        why="torch.optim loads such state without a word and fails, or computes nonsense, at the next step",
        helps=[("--drop-state '**'", "begin with a fresh optimizer")],
        keys=[k for k, _ in wrong],
    )


def resolve(names: Sequence[str], keys: Iterable[str]) -> list[str] | None:
    """The key of each name: as it is, without wrappers, or under (or without) one prefix; None if not all.

    >>> resolve(["fc.weight"], ["module.net.fc.weight", "module.net.fc.bias"])
    ['module.net.fc.weight']
    """
    exact = list(keys)
    there = set(exact)
    if all(n in there for n in names):
        return list(names)
    bare: dict[str, str] = {}
    for key in exact:
        if bare.setdefault(strip_key(key), key) != key:
            return None
    stripped = [strip_key(n) for n in names]
    if all(n in bare for n in stripped):
        return [bare[n] for n in stripped]
    first = stripped[0]
    under = {k[: -len(first)] for k in bare if k.endswith("." + first)}
    found = [p for p in under if all(p + n in bare for n in stripped)]
    if len(found) == 1:
        return [bare[found[0] + n] for n in stripped]
    parts = first.split(".")
    over = [".".join(parts[:i]) + "." for i in range(1, len(parts))]
    cut = [
        p
        for p in over
        if all(n.startswith(p) for n in stripped) and all(n[len(p) :] in bare for n in stripped)
    ]
    return [bare[n[len(cut[0]) :]] for n in stripped] if len(cut) == 1 and not found else None


def _by_order(saved: Saved, sides: Sides, answers: Answers) -> Named:
    shapes = [p.shape for p in saved.params]
    ours = _listed_order(saved, sides)
    theirs = _file_orders(saved, sides) if sides.source.ordered else []
    fits = [order for order in theirs if _fits(order, shapes, sides)]
    a = fits[0] if len({tuple(o) for o in fits}) == 1 else None
    b = ours if ours is not None and _fits(ours, shapes, sides) else None
    if answers.order:
        chosen = a if answers.order == "checkpoint" else b
        if chosen is None:
            return Named(problems=(_no_such_order(saved, answers.order),))
        return Named(tuple(chosen), f"in the order of the {answers.order}, as decided")
    everything = sides.feeds(key for group in sides.listed for key in group)
    if a is not None and _agree(a, b if b is not None else everything, sides):
        return Named(tuple(a), "in the order of the state dict, which the optimizer's own order confirms")
    if b is not None and sides.source.ordered and _agree(b, list(sides.source.specs), sides):
        return Named(tuple(b), "in the optimizer's own order, which the state dict's confirms")
    unique = _by_unique_shapes(shapes, everything, sides)
    if unique is not None:
        return Named(tuple(unique), "each has a shape of its own")
    other = b if b is not None else everything
    return Named(problems=(_order_problem(saved, sides, a, b, _differ(a or (), other, sides)),))


def _listed_order(saved: Saved, sides: Sides) -> list[str] | None:
    """The optimizer's own order in the checkpoint's keys; None where its groups are not the saved ones."""
    by_group = [sides.feeds(group) for group in sides.listed]
    flat = [key for group in by_group for key in group]
    if len(saved.groups) == 1 or [len(g) for g in by_group] == saved.sizes():
        return flat if len(set(flat)) == len(flat) else None
    return None


def _file_orders(saved: Saved, sides: Sides) -> list[list[str]]:
    """What the state dict's order says, for each idea of which of its keys are in the optimizer."""
    feeding = set(sides.feeds(sides.ways))
    listed = set(sides.feeds(key for group in sides.listed for key in group))
    firsts = [k for k in sides.source.specs if sides.first(k) == k]
    params = [k for k in firsts if _is_param(k, sides, feeding)]
    ideas = [params, [k for k in params if k in feeding], [k for k in params if k in listed]]
    count = len(saved.params)
    orders = [order for order in ideas if len(order) == count]
    return [o for order in orders if (o := _grouped(order, saved, sides)) is not None]


def _is_param(key: str, sides: Sides, feeding: set[str]) -> bool:
    if key in sides.kinds:
        return sides.kinds[key] == "param"
    if key in feeding:
        return True
    spec = sides.source[key]
    if spec.kind == "buffer" or key.rpartition(".")[2] in BUFFER_LEAVES:
        return False
    used = {s for sources, _ in sides.ways.values() for s in sources}
    return (
        key not in used and spec.dtype.startswith(("float", "bfloat", "complex")) and not _buffer(key, sides)
    )


def _buffer(key: str, sides: Sides) -> bool:
    return key in sides.target and sides.target[key].kind == "buffer"


def _grouped(order: list[str], saved: Saved, sides: Sides) -> list[str] | None:
    """The order cut into the saved groups, as the optimizer at hand groups the same parameters."""
    if len(saved.groups) == 1:
        return order
    group_of = {key: g for g, keys in enumerate(sides.listed) for key in sides.feeds(keys)}
    if [sum(group_of.get(k) == g for k in order) for g in range(len(saved.groups))] != saved.sizes():
        return None
    return [key for g in range(len(saved.groups)) for key in order if group_of[key] == g]


def _fits(order: Sequence[str], shapes: Sequence[tuple[int, ...] | None], sides: Sides) -> bool:
    return len(order) == len(shapes) and all(
        shape is None or shape == sides.source[key].shape for key, shape in zip(order, shapes, strict=True)
    )


def _agree(a: Sequence[str], b: Sequence[str], sides: Sides) -> bool:
    """Whether the two list the parameters of each shape in one and the same order."""
    return not _differ(a, b, sides)


def _differ(a: Sequence[str], b: Sequence[str], sides: Sides) -> list[tuple[str, str]]:
    """Where the two orders have another parameter of the same shape: the key in each."""
    common = set(a) & set(b)
    turns: dict[tuple[int, ...], list[str]] = {}
    for key in b:
        if key in common:
            turns.setdefault(sides.source[key].shape, []).append(key)
    pairs = [(key, turns[sides.source[key].shape].pop(0)) for key in a if key in common]
    return [(x, y) for x, y in pairs if x != y]


def _by_unique_shapes(
    shapes: Sequence[tuple[int, ...] | None], everything: Sequence[str], sides: Sides
) -> list[str] | None:
    """No two parameters of one shape: the shapes alone name them, in whatever order they are."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for key in everything:
        by_shape.setdefault(sides.source[key].shape, []).append(key)
    known = [s for s in shapes if s is not None]
    if len(known) != len(shapes) or len(set(known)) != len(known) or len(known) != len(everything):
        return None
    found = [by_shape.get(s, []) for s in known]
    return [keys[0] for keys in found] if all(len(keys) == 1 for keys in found) else None


def _no_such_order(saved: Saved, order: str) -> Diagnostic:
    return finding(
        "CKD607",
        f"param-order={order} is decided, but the saved state does not fit that order",
        place=saved.where,
        why="the number of parameters, their groups or the shapes of their state differ from it",
        helps=[("--drop-state '**'", "begin with a fresh optimizer")],
    )


def _order_problem(
    saved: Saved,
    sides: Sides,
    a: Sequence[str] | None,
    b: Sequence[str] | None,
    differ: Sequence[tuple[str, str]],
) -> Diagnostic:
    helps = [("--param-order checkpoint", "in the order of the file's state dict")] if a is not None else []
    if b is not None:
        helps.append(("--param-order model", "as the optimizer at hand lists its parameters"))
    helps.append(("--drop-state '**'", "begin with a fresh optimizer"))
    many = len(saved.params)
    listed = sum(map(len, sides.listed))
    count = "" if many == listed else f"; {many} are saved, the optimizer at hand has {listed}"
    return finding(
        "CKD607",
        "which saved moments belong to which parameter is open, for they have no names",
        place=saved.where,
        lines=[
            f"{printable(x)} in the file's order, {printable(y)} in the optimizer's" for x, y in differ[:4]
        ],
        why=(
            "parameters of one shape are told apart by their order only, and "
            + ("the orders disagree" if differ else "no order is proved by a second one")
            + count
        ),
        notes=("torch.optim would load them by position without a word",),
        helps=helps,
        keys=[x for x, _ in differ],
    )
