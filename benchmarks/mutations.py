"""Mutated pairs with known truth: a tier of its own, made from the trees of real cases.

A mutation changes one side of a pair (names, order, levels, layouts) and carries the truth along. Same
cases, count and seed give the same pairs. What is never made: names that mislead, such as ``norm1`` and
``norm2`` swapped; no static tool can see that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.cases import Case, Fill
from benchmarks.nodes import NotApplicable, Path
from ckptdoctor.trees import ParamTree, TensorSpec

LARGEST = 330  # keys; larger trees say the same more slowly
TRIES = 12
CONVOLUTIONAL = frozenset(
    [
        "alexnet",
        "cnn",
        "convnext",
        "dcgan",
        "densenet",
        "efficientnet",
        "gan",
        "mobilenetv2",
        "resnet",
        "unet",
        "vgg",
        "vocoder",
    ]
)


@dataclass
class Draft:
    """A pair while it is being changed. Keys are dotted texts; values are replaced, never changed."""

    source: dict[str, TensorSpec]
    target: dict[str, TensorSpec]
    modules: dict[str, str]
    truth: dict[str, Fill]
    unfilled: dict[str, str] = field(default_factory=dict)
    ordered: bool = True
    verdict: str = "map"
    strangers: Sequence[ParamTree] = ()  # trees of other networks

    def rename_source(self, names: Mapping[str, str]) -> None:
        """New names for all checkpoint keys."""
        self.source = {names[k]: s for k, s in self.source.items()}
        self.truth = {t: Fill(tuple(names[s] for s in f.sources), f.ops) for t, f in self.truth.items()}

    def rename_target(self, names: Mapping[str, str], modules: Mapping[str, str]) -> None:
        """New names for all model keys."""
        self.target = {names[k]: s for k, s in self.target.items()}
        self.truth = {names[t]: f for t, f in self.truth.items()}
        self.unfilled = {names[t]: op for t, op in self.unfilled.items()}
        self.modules = {modules[p]: c for p, c in self.modules.items()}

    def relabel(self, labels: Mapping[Path, Path]) -> None:
        """Rename tree nodes, on one side: node path -> the segments that stand for its last segment."""
        keys = list(self.source)
        names = {k: ".".join(relabelled(tuple(k.split(".")), labels)) for k in keys}
        if len(set(names.values())) < len(keys):
            raise NotApplicable
        if not _prefix_free(names.values()):
            raise NotApplicable
        self.rename_source(names)

    def mirror(self) -> None:
        """Exchange the sides of an identity-shaped pair (every key copied once, nothing left over)."""
        back = {f.sources[0]: t for t, f in self.truth.items()}
        if len(back) < len(self.source) or any(f.ops or len(f.sources) > 1 for f in self.truth.values()):
            raise NotApplicable
        self.source, self.target = self.target, self.source
        self.truth = {s: Fill((t,)) for s, t in back.items()}
        self.modules = {}


def relabelled(path: Path, labels: Mapping[Path, Path]) -> Path:
    """A path with the labels of all its nodes."""
    new: list[str] = []
    for depth in range(1, len(path) + 1):
        new += labels.get(path[:depth], path[depth - 1 : depth])
    return tuple(new)


def _prefix_free(names: object) -> bool:
    """No key may be the path of a module of another."""
    keys = set(names)
    return not any(k.rpartition(".")[0] in keys for k in keys)


Change = Callable[[random.Random, Draft], None]


@dataclass(frozen=True)
class Kind:
    """A kind of mutation. ``solvable``: names, shapes and order still determine the answer."""

    name: str
    change: Change
    solvable: bool


KINDS: dict[str, Kind] = {}


def kind(name: str, *, solvable: bool) -> Callable[[Change], Change]:
    """Register a mutation."""

    def add(change: Change) -> Change:
        KINDS[name] = Kind(name, change, solvable)
        return change

    return add


def draft_of(case: Case) -> Draft:
    """A case to be changed further."""
    return Draft(
        dict(case.source.specs),
        dict(case.target.specs),
        dict(case.target.modules),
        dict(case.truth),
        dict(case.unfilled),
        case.source.ordered,
    )


def identity(tree: ParamTree) -> Draft:
    """A tree and itself."""
    specs = dict(tree.specs)
    plain = {k: replace(s, kind="") for k, s in specs.items()}
    return Draft(plain, specs, dict(tree.modules), {k: Fill((k,)) for k in specs})


def finish(draft: Draft, name: str, kind_name: str) -> Case:
    """The mutated pair as a case of tier M."""
    source = ParamTree(draft.source, ordered=draft.ordered)
    target = ParamTree(draft.target, modules=draft.modules)
    used = {s for f in draft.truth.values() for s in f.sources}
    dropped = {k: "added by the mutation" for k in draft.source if k not in used}
    return Case(
        name, "M", source, target, draft.verdict, draft.truth, draft.unfilled, dropped, kind=kind_name
    )


def mutate(
    case: Case, kind_name: str, seed: int, *, real: bool = False, others: Sequence[Case] = ()
) -> Case | None:
    """One mutation of a case: of its model's tree against itself, or (``real``) of the real pair.

    ``others`` are cases from which a checkpoint of quite another network may be taken.
    None when the tree has nothing that this mutation could change.
    """
    chosen = load_kinds()[kind_name]
    for attempt in range(TRIES):
        rng = random.Random(f"{case.name}/{kind_name}/{seed}/{attempt}")
        draft = draft_of(case) if real else identity(case.target)
        draft.strangers = [o.source for o in others if unrelated(case, o)]
        try:
            chosen.change(rng, draft)
        except NotApplicable:
            continue
        return finish(draft, f"{case.name}~{kind_name}~{seed}{'r' if real else ''}", kind_name)
    return None


def usable(cases: Sequence[Case]) -> list[Case]:
    """Cases whose trees are worth mutating: one right answer, not too large."""
    return [
        c
        for c in cases
        if c.verdict == "map"
        and 8 <= len(c.target) <= LARGEST
        and len(c.source) <= LARGEST
        and c.tier != "T6"
    ]


def unrelated(a: Case, b: Case) -> bool:
    """Whether one is a convolutional network and the other is not."""
    return (a.family in CONVOLUTIONAL) != (b.family in CONVOLUTIONAL)


def has_spares(case: Case) -> bool:
    """Whether a dropped tensor is the like of one that is used (every layer's own ``inv_freq``)."""
    used = {(k.rpartition(".")[2], case.source[k].shape) for f in case.truth.values() for k in f.sources}
    return any((k.rpartition(".")[2], case.source[k].shape) in used for k in case.dropped)


def load_kinds() -> dict[str, Kind]:
    """All kinds, by name."""
    import benchmarks.mutation_kinds
    import benchmarks.mutation_traps  # noqa: F401  # it registers its mutations

    return KINDS


def mutations(cases: Sequence[Case], count: int, seed: int = 0) -> Iterator[Case]:
    """``count`` mutated pairs, the kinds in turn."""
    load_kinds()
    bases = usable(cases)
    rng = random.Random(seed)
    made = 0
    failures = 0
    while made < count and failures < 50 * count:
        for name in list(KINDS):
            base = rng.choice(bases)
            real = KINDS[name].solvable and not has_spares(base) and rng.random() < 0.35
            mutated = mutate(base, name, rng.randrange(10**6), real=real, others=bases)
            if mutated is None:
                failures += 1
                continue
            yield mutated
            made += 1
            if made >= count:
                return
