"""The passes of an alignment, in order. Each reads what the passes before it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat

from ckptdoctor.align import (
    checks,
    chosen,
    companions,
    crossed,
    crossing,
    doubts,
    facts,
    finish,
    folds,
    layouts,
    tied,
    turned,
    variants,
)
from ckptdoctor.align.compose import compose, fold_weight_norm
from ckptdoctor.align.crossed import Claims
from ckptdoctor.align.crossing import Crossing
from ckptdoctor.align.experts import stack_experts
from ckptdoctor.align.matcher import Matching, match_units
from ckptdoctor.align.model import Alignment, Match, Question, Unused
from ckptdoctor.align.names import is_derived, is_training_state, table
from ckptdoctor.align.orient import Pair, decide, make_pairs
from ckptdoctor.align.prefix import Base, Canonical, find_base, relative_name, relative_names
from ckptdoctor.align.reporter import Reporter
from ckptdoctor.align.rest import second_chances
from ckptdoctor.align.units import OPTIONAL_ROLES, Unit, build_units
from ckptdoctor.columns import rows
from ckptdoctor.decisions import Decision
from ckptdoctor.trees import ParamTree, TensorSpec

SAME = ("same name",)


@dataclass
class State:
    """What the passes share."""

    source: ParamTree
    target: ParamTree
    decisions: Sequence[Decision]
    base: Base = field(default_factory=lambda: Base("", "", 0))
    source_names: dict[str, str] = field(default_factory=dict)  # canonical -> key
    target_names: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, list[str]] = field(default_factory=dict)  # canonical -> keys
    followers: dict[str, str] = field(default_factory=dict)  # tied model key -> key it follows
    sources: list[Unit] = field(default_factory=list)
    targets: list[Unit] = field(default_factory=list)
    whole_sources: list[list[tuple[str, ...]]] = field(default_factory=list)  # canonical names by unit
    whole_targets: list[list[tuple[str, ...]]] = field(default_factory=list)
    matching: Matching = field(default_factory=Matching)
    pairs: list[Pair] = field(default_factory=list)
    matches: dict[str, Match] = field(default_factory=dict)
    unused: dict[str, Unused] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusal: str = ""
    crossed: tuple[str, ...] = ()  # recipes that explained their part of both trees
    folds: dict[str, list[str]] = field(default_factory=dict)  # reparametrisation -> model keys
    suspects: list[Crossing] = field(default_factory=list)  # those whose names fit and no more
    canonical: tuple[Canonical, Canonical] = field(default_factory=lambda: (Canonical({}), Canonical({})))
    claims: Claims | None = None  # as long as they hold
    reporter: Reporter = field(default_factory=Reporter)


def run(
    source: ParamTree,
    target: ParamTree,
    decisions: Sequence[Decision] = (),
    reporter: Reporter | None = None,
) -> Alignment:
    """All passes."""
    state = State(source, target, decisions, reporter=reporter or Reporter())
    for step in PASSES:
        state.reporter.step(NAMES[step])
        if state.source_names or state.target_names or step not in ON_NAMES:
            step(state)
    return finish.result(state)


def to_one_space(state: State) -> None:
    """Wrapper segments and base prefixes off; tied followers aside."""
    found_s, found_t = state.canonical
    state.duplicates = found_s.duplicates
    names_s, names_t = found_s.names, found_t.names
    if found_t.duplicates:
        names_t = {k: k for k in facts.open_target(state)}
    names_s |= {n: ks[-1] for n, ks in found_s.duplicates.items() if n in names_t and n in ks}
    shapes_s, shapes_t = state.source.shapes, state.target.shapes
    mine = {n: shapes_s[k] for n, k in names_s.items()}
    theirs = {n: shapes_t[k] for n, k in names_t.items()}
    # Nothing is to be found, and it would take long, where all names and shapes agree already.
    state.base = Base("", "", len(theirs)) if mine == theirs else find_base(mine, theirs)
    state.source_names = relative_names(names_s, state.base.source)
    state.target_names = relative_names(names_t, state.base.target)
    state.followers = finish.followers(state)


def same_names(state: State) -> None:
    """The usual case, cheaply: every name on either side is on the other, with the same shape."""
    names, mine = state.target_names, state.source_names
    if len(mine) != len(names) or state.duplicates or state.base.rivals or state.base.places:
        return
    sources, targets = state.source.shapes, state.target.shapes
    found = [mine.get(name, "") for name in names]
    if list(map(sources.get, found)) != list(map(targets.__getitem__, names.values())):
        return
    made = rows(
        Match, names.values(), repeat("safe"), zip(found, strict=True), repeat(()), repeat(SAME), repeat(())
    )
    state.matches |= zip(names.values(), made, strict=True)
    state.source_names, state.target_names, state.followers = {}, {}, {}


def make_units(state: State) -> None:
    """Modules with their tensors; fused and split packs brought to one form."""
    exact = {n for n in state.target_names if n in state.source_names}
    mine = _specs(state.source_names, state.source, exact)
    hidden = set(state.followers)
    theirs = {
        n: s
        for n, s in _specs(state.target_names, state.target, exact).items()
        if state.target_names[n] not in hidden
    }
    classes = {relative_name(p, state.base.target): c for p, c in state.target.modules.items()}
    state.sources = build_units(mine)
    state.targets = build_units(theirs, classes)
    state.sources = fold_weight_norm(state.sources, state.targets)
    folds.unfold_targets(state)
    folds.fold_sources(state, facts.known(state))
    stacked = stack_experts(state.sources, state.targets)
    state.targets = stack_experts(state.targets, state.sources)
    state.sources = stacked
    composed = compose(state.sources, state.targets)
    state.targets = compose(state.targets, state.sources)
    state.sources = composed


def _specs(names: dict[str, str], tree: ParamTree, exact: set[str]) -> dict[str, TensorSpec]:
    """Specs by canonical name, without derived buffers that only one side has."""
    return {n: tree[k] for n, k in names.items() if n in exact or not _aside(n)}


def _aside(name: str) -> bool:
    """Derived buffers, training state, packed weights; a batch counter travels with its module."""
    derived = is_derived(name) and not name.endswith("num_batches_tracked")
    return derived or is_training_state(name) or name.rpartition(".")[2] in table()["layouts"]["quantised"]


def match(state: State) -> None:
    """Pair the units."""
    state.matching = match_units(state.sources, state.targets, state.source.ordered, state.reporter)
    state.whole_sources = _tensors(state.sources)
    state.whole_targets = _tensors(state.targets)


def _tensors(units: list[Unit]) -> list[list[tuple[str, ...]]]:
    return [[leaf.keys for role, leaf in u.leaves.items() if role not in OPTIONAL_ROLES] for u in units]


def rest(state: State) -> None:
    """Second chances, unless it is another model anyway."""
    if not state.refusal:
        second_chances(state)


def orient(state: State) -> None:
    """Find the op chain of every tensor of every certain pair."""
    sources = {u.index: u for u in state.sources}
    for target in state.targets:
        index = state.matching.certain.get(target.index)
        if index is None:
            continue
        pairs = make_pairs(sources[index], target)
        if pairs is None:
            del state.matching.certain[target.index]
            state.matching.lonely_targets.append(target.index)
            state.matching.lonely_sources.append(index)
            continue
        state.pairs += pairs
    decide(state.pairs)


# What only looks at names that are open still.
ON_NAMES = {make_units, match, variants.variant, rest, variants.little_fits, orient, finish.write_matches}

PASSES = (
    facts.declared,
    crossing.cross,
    to_one_space,
    chosen.resized,
    same_names,
    make_units,
    match,
    variants.variant,
    rest,
    variants.little_fits,
    orient,
    finish.write_matches,
    finish.leftovers,
    chosen.relaid,
    checks.adapters,
    layouts.invisible,
    crossing.unexplained,
    turned.unproved,
    turned.packs,
    turned.exchanged,
    checks.duplicates,
    checks.rivals,
    checks.places,
    checks.backwards,
    checks.namesakes,
    crossed.crossed,
    crossed.torn,
    tied.exchanged,
    variants.families,
    checks.scattered,
    checks.partly_used,
    checks.refused,
    companions.derived,
    finish.fill_ties,
    finish.account,
    doubts.doubt,
    finish.account,
    finish.ask,
    chosen.answered,
)
NAMES = {step: step.__name__.replace("_", " ") for step in PASSES}
