"""An expansion sorted for programs: what is only renamed, what is made, what stays, what goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptdoctor.errors import PlanError
from ckptdoctor.plan.expand import Expansion
from ckptdoctor.plan.export.names import Names, find_names
from ckptdoctor.plan.export.tensors import expression
from ckptdoctor.plan.fills import Fill
from ckptdoctor.trees import ParamTree

COUNTER = "num_batches_tracked"  # the one buffer whose first value is known: `apply.derived`


@dataclass(frozen=True)
class Moves:
    """Everything that a plan does, key by key. Model keys are values of ``plain`` and keys of the others."""

    plain: Mapping[str, str]  # checkpoint key -> model key, the tensor as it is
    names: Names
    made: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)  # sources, expression
    tied: Mapping[str, str] = field(default_factory=dict)  # -> the model key whose tensor it is
    ties: tuple[tuple[str, ...], ...] = ()  # model keys of one tensor that are filled apart
    own: tuple[str, ...] = ()  # the model's own values
    counters: tuple[str, ...] = ()  # of these the ones that start at zero
    casts: Mapping[str, str] = field(default_factory=dict)  # -> dtype
    dropped: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)  # dropped -> the key it has to equal
    modules: Mapping[str, str] = field(default_factory=dict)  # path in the model -> in the checkpoint


def sort_moves(expansion: Expansion, source: ParamTree, target: ParamTree) -> Moves:
    """Sort them. Raises :class:`PlanError` for an op without a plain form."""
    plain: dict[str, str] = {}
    made: dict[str, tuple[tuple[str, ...], str]] = {}
    fills = expansion.fills
    loaded = {key: fill for key, fill in fills.items() if fill.kind == "load"}
    for key, fill in loaded.items():
        single = len(fill.sources) == 1 and not fill.ops
        if single and fill.sources[0] not in plain:
            plain[fill.sources[0]] = key
        else:
            shapes = [source[s].shape for s in fill.sources]
            made[key] = (fill.sources, expression(fill.ops, shapes))
    own = tuple(key for key, fill in fills.items() if fill.kind in ("keep", "reinit"))
    return Moves(
        plain=plain,
        names=find_names(plain),
        made=made,
        tied={key: _anchor(key, fills) for key, fill in fills.items() if fill.kind == "tie"},
        ties=tuple(g for g in (tuple(k for k in t if k in loaded) for t in target.ties) if len(g) > 1),
        own=own,
        counters=tuple(k for k in own if k.rpartition(".")[2] == COUNTER and target[k].shape == ()),
        casts={key: target[key].dtype for key, fill in loaded.items() if fill.cast},
        dropped=tuple(expansion.unused),
        copies=dict(expansion.copies),
        modules=_modules(loaded),
    )


def _anchor(key: str, fills: Mapping[str, Fill]) -> str:
    while fills[key].kind == "tie":
        key = fills[key].tied_to
    return key


def _modules(loaded: Mapping[str, Fill]) -> dict[str, str]:
    """Modules under another path that take all their tensors from one module: its version is theirs."""
    wrote: dict[str, set[str]] = {}
    for key, fill in loaded.items():
        wrote.setdefault(_owner(key), set()).update(map(_owner, fill.sources))
    found = {path: next(iter(sources)) for path, sources in wrote.items() if len(sources) == 1}
    return {path: source for path, source in found.items() if path != source}


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def only_names(moves: Moves, form: str) -> Mapping[str, str]:
    """The moves, if they are renames. Raises :class:`PlanError` naming what ``form`` cannot say."""
    problems = [
        (moves.made, "makes tensors out of others ({}), which is more than a new name"),
        (moves.dropped, "leaves tensors of the checkpoint unused ({})"),
        (moves.own, "keeps the model's own values ({})"),
        (moves.tied, "fills tied names ({}) from another name"),
        (moves.ties, "relies on equal values of tied names ({})"),
    ]
    for found, words in problems:
        if found:
            first = ascii(next(iter(found)))
            what = words.format(first)
            raise PlanError(f"`--format {form}` can only rename, and this plan {what}; use python or hook")
    return moves.plain
