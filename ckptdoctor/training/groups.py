"""Hyperparameters: which saved group's values each group of the optimizer at hand gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.formats.content import Leaf
from ckptdoctor.keys import printable
from ckptdoctor.training.answers import Answers
from ckptdoctor.training.carry import Carry
from ckptdoctor.training.findings import finding

# How the step is computed on this machine, not what it computes: always those of the optimizer at hand.
MACHINE = frozenset({"foreach", "fused", "capturable", "differentiable"})
# What makes Adam of AdamW: a difference means another optimizer, not another setting.
IDENTITY = frozenset({"decoupled_weight_decay"})
# What a schedule changes in the course of training; taking the wrong one is a wrong learning rate.
SCHEDULED = frozenset(
    {"lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas", "base_momentum", "max_momentum"}
)


# Settings that tell the kinds of optimizers apart.
KINDS = frozenset({
    "betas", "momentum", "rho", "alpha", "lambd", "etas", "history_size", "lr_decay", "beta2_decay",
    "ns_steps",
})  # fmt: skip


# State without which a step of these optimizers fails; others have none, or make what is not there.
_MOMENTS = frozenset({"exp_avg", "exp_avg_sq"})
SLOTS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "SparseAdam"), _MOMENTS),
    "Adamax": frozenset({"exp_avg", "exp_inf"}), "Adagrad": frozenset({"sum"}),
    "Adadelta": frozenset({"square_avg", "acc_delta"}), "RMSprop": frozenset({"square_avg"}),
    "Rprop": frozenset({"prev", "step_size"}), "ASGD": frozenset({"eta", "mu", "ax"}),
}  # fmt: skip


@dataclass(frozen=True)
class Hyper:
    """``values``: for each group at hand what it gets from the file. ``origin``: its saved group, if one."""

    values: tuple[Mapping[str, Any], ...] = ()
    origin: tuple[int | None, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Diagnostic, ...] = field(default=())

    @property
    def same_groups(self) -> bool:
        """Whether the groups are the saved ones, one by one."""
        return self.origin == tuple(range(len(self.origin)))


def hyperparameters(
    carried: Carry, groups: Sequence[Mapping[str, Any]], answers: Answers, optimizer: str
) -> Hyper:
    """What each of the ``groups`` at hand takes from the saved ones; questions where that is open."""
    saved = carried.saved
    foreign = _foreign(carried, groups, optimizer)
    if foreign is not None and not carried.dropped:
        return Hyper(problems=(foreign,))
    sources = _sources(carried, len(groups))
    if answers.own_groups:
        decided = ("hyperparameters are those of the optimizer at hand, as decided",)
        return Hyper(tuple({} for _ in groups), tuple(None for _ in groups), decided)
    origin = tuple(next(iter(s)) if len(s) == 1 else None for s in sources)
    shared = {g: [t for t, s in enumerate(sources) if g in s] for g in range(len(saved.groups))}
    values: list[dict[str, Any]] = []
    kept: dict[str, None] = {}
    open_: dict[str, None] = {}
    for t, group in enumerate(groups):
        taken: dict[str, Any] = {}
        for key in dict.fromkeys(k for g in sources[t] for k in saved.groups[g]):
            if key in MACHINE or (foreign is not None and key not in ("lr", "initial_lr")):
                continue
            theirs = [saved.groups[g].get(key) for g in sources[t]]
            together = {u for g in sources[t] for u in shared[g]}
            ours = [groups[u].get(key) for u in together]
            clear = _same(theirs) and (len(together) == 1 or _same(ours) or key not in group)
            if clear:
                taken[key] = theirs[0]
            elif key in SCHEDULED:
                open_[key] = None
            else:
                kept[key] = None
        values.append(taken)
    unplaced = [t for t, s in enumerate(sources) if not s]
    notes: list[str] = []
    if kept:
        notes.append(f"{', '.join(map(printable, kept))}: the optimizer's own, as its groups differ")
    if unplaced and len(unplaced) < len(groups):
        notes.append(f"{len(unplaced)} groups have no saved parameter and keep their own hyperparameters")
    problems = (_conflict(carried, list(open_)),) if open_ else ()
    return Hyper(tuple(values), origin, tuple(notes), problems)


def _sources(carried: Carry, count: int) -> list[list[int]]:
    """The saved groups behind each group at hand."""
    saved = carried.saved
    found = [sorted({p.group for c in group for p in c.sources}) for group in carried.params]
    if any(found):
        return found
    if len(saved.groups) == count:  # no parameter is named, there is no state: groups are all there is
        return [[g] for g in range(count)]
    everything = list(range(len(saved.groups)))
    return [everything for _ in range(count)]


def _same(values: Sequence[Any]) -> bool:
    return all(_plain(v) == _plain(values[0]) for v in values)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, Leaf):
        return value.path
    return float(value) if hasattr(value, "item") else value


def _foreign(carried: Carry, groups: Sequence[Mapping[str, Any]], optimizer: str) -> Diagnostic | None:
    """The saved state is of another kind of optimizer."""
    saved, group = carried.saved, dict(groups[0]) if groups else {}
    theirs = dict(saved.groups[0]) if saved.groups else {}
    known = {k for k in group if k not in MACHINE | {"params", "param_names", "initial_lr", "swa_lr"}}
    lacks = sorted((known & KINDS) - set(theirs))
    more = sorted((set(theirs) & KINDS) - known)
    differs = [k for k in IDENTITY if k in group and k in theirs and group[k] != theirs[k]]
    slots = sorted(SLOTS.get(optimizer, frozenset()) - saved.slots) if saved.slots else []
    if not (lacks and theirs) and not more and not differs and not slots:
        return None
    theirs_words = ", ".join(k for k in theirs if k not in MACHINE) or "nothing"
    return finding(
        "CKD608",
        f"the saved state is that of another kind of optimizer than {optimizer}",
        place=saved.where,
        lines=[f"saved: {printable(theirs_words)}", f"at hand: {', '.join(sorted(known))}"],
        why=f"they differ in {', '.join(map(printable, lacks + more + differs + slots))}",
        helps=[("--drop-state '**'", "begin with a fresh optimizer (with --param-groups optimizer)")],
    )


def _conflict(carried: Carry, keys: list[str]) -> Diagnostic:
    saved = carried.saved
    return finding(
        "CKD601",
        f"the optimizer's groups are not the {len(saved.groups)} saved ones, and {', '.join(keys)} differ",
        place=saved.where,
        lines=[
            f"saved group {i}: {size} parameters, " + ", ".join(f"{k} {_plain(g.get(k))}" for k in keys)
            for i, (size, g) in enumerate(zip(saved.sizes(), saved.groups, strict=True))
        ],
        why="which of the saved values is meant cannot be known",
        helps=[("--param-groups optimizer", "keep the optimizer's own hyperparameters")],
    )
