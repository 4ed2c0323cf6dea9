"""Mutations that take the answer away, in part or whole: only asking or refusing is right there.

What stays determined may be claimed; a claim that differs from the truth is wrong.
"""

from __future__ import annotations

import random
from dataclasses import replace

from benchmarks.cases import Fill
from benchmarks.mutations import Draft, kind
from benchmarks.nodes import (
    NotApplicable,
    Path,
    below,
    children,
    content,
    nodes,
    pick,
    reordered,
    signature,
    twins,
)
from benchmarks.words import neutral
from ckptdoctor.trees import TensorSpec


@kind("siblings without names", solvable=False)
def anonymous_siblings(rng: random.Random, draft: Draft) -> None:
    """Equal children of one module get names that tell nothing, in a random order."""
    parent, groups = pick(rng, twins(draft.source))
    _anonymise(rng, draft, parent, [n for g in groups for n in g])


@kind("all siblings without names", solvable=False)
def anonymous_everywhere(rng: random.Random, draft: Draft) -> None:
    """The same in every block that is built alike."""
    parent, groups = pick(rng, twins(draft.source))
    shape = signature(draft.source, parent)
    for node in [(), *nodes(draft.source)]:
        if signature(draft.source, node) == shape:
            _anonymise(rng, draft, node, [n for g in groups for n in g])


def _anonymise(rng: random.Random, draft: Draft, parent: Path, names: list[str]) -> None:
    """New names for these children; their places in the order are shuffled among themselves."""
    everyone = children(draft.source)[parent]
    shuffled = iter(rng.sample(names, len(names)))
    order = [next(shuffled) if n in names else n for n in everyone]
    draft.source = {k: draft.source[k] for k in reordered(draft.source, parent, order)}
    words = neutral(rng, len(names))
    draft.relabel({(*parent, n): (w,) for n, w in zip(names, words, strict=True)})


@kind("anonymous names", solvable=False)
def anonymous(rng: random.Random, draft: Draft) -> None:
    """Every tensor has a name that tells nothing; those of equal shape stand in a random order."""
    _shuffle_twins(rng, draft)
    hexes = [f"{rng.getrandbits(40):010x}" for _ in draft.source]
    numbered = rng.random() < 0.5
    draft.rename_source({k: f"param_{i}" if numbered else hexes[i] for i, k in enumerate(draft.source)})


@kind("anonymous modules", solvable=False)
def anonymous_modules(rng: random.Random, draft: Draft) -> None:
    """Every module has a name that tells nothing; equal siblings stand in a random order."""
    _shuffle_twins(rng, draft)
    labels: dict[Path, Path] = {}
    for parent, names in children(draft.source).items():
        inner = [n for n in names if (*parent, n) in set(nodes(draft.source))]
        if len(inner) <= 40:
            labels |= {(*parent, n): (w,) for n, w in zip(inner, neutral(rng, len(inner)), strict=True)}
    draft.relabel(labels)


def _shuffle_twins(rng: random.Random, draft: Draft) -> None:
    for parent, groups in twins(draft.source):
        names = [n for g in groups for n in g]
        shuffled = iter(rng.sample(names, len(names)))
        order = [next(shuffled) if n in names else n for n in children(draft.source)[parent]]
        draft.source = {k: draft.source[k] for k in reordered(draft.source, parent, order)}


@kind("a module's name lost", solvable=False)
def name_lost(rng: random.Random, draft: Draft) -> None:
    """``blocks.0.norm1.weight`` becomes ``blocks.0.weight``: what it was is told by nothing but its shape."""
    inner = set(nodes(draft.source))
    leaves = inner - {n[:-1] for n in inner}
    name = pick(rng, sorted({n[-1] for n in leaves if len(n) > 1}))
    draft.relabel({n: () for n in leaves if n[-1] == name and len(n) > 1})


@kind("index for names", solvable=False)
def index_for_names(rng: random.Random, draft: Draft) -> None:
    """Equal children with words for names (q, k, v) get numbers in another order of registration."""
    found = []
    for parent, groups in twins(draft.source):
        worded = [g for g in groups if not any(c.isdigit() for n in g for c in n)]
        if worded and len(children(draft.source)[parent]) == sum(map(len, worded)):
            found.append((parent, worded))
    parent, groups = pick(rng, found)
    shape = signature(draft.source, parent)
    names = [n for g in groups for n in g]
    turn = rng.sample(names, len(names))
    for node in nodes(draft.source):
        if signature(draft.source, node) == shape:
            order = reordered(draft.source, node, turn)
            draft.source = {k: draft.source[k] for k in order}
            draft.relabel({(*node, n): (str(i),) for i, n in enumerate(turn)})


@kind("blocks without names", solvable=False)
def anonymous_blocks(rng: random.Random, draft: Draft) -> None:
    """Numbered blocks get names without number or order."""
    tree = children(draft.source)
    lists = [p for p, names in tree.items() if len(names) > 1 and all(map(str.isdigit, names))]
    parent = pick(rng, lists)
    _anonymise(rng, draft, parent, tree[parent])


@kind("block removed", solvable=False)
def block_removed(rng: random.Random, draft: Draft) -> None:
    """The checkpoint is one block shallower and counts without a gap: which one lacks cannot be seen."""
    tree = children(draft.source)
    lists = [p for p, names in tree.items() if len(names) > 2 and all(map(str.isdigit, names))]
    equal = [p for p in lists if len({content(draft.source, (*p, n)) for n in tree[p]}) == 1]
    parent = pick(rng, equal)
    gone = rng.choice(tree[parent][:-1])
    back = {f.sources[0]: t for t, f in draft.truth.items()}
    for key in below(draft.source, (*parent, gone)):
        del draft.source[key]
        del draft.truth[back[key]]
        draft.unfilled[back[key]] = "must-flag-missing"
    rest = [n for n in tree[parent] if n != gone]
    draft.relabel({(*parent, n): (str(i),) for i, n in enumerate(rest)})
    draft.verdict = "map_partial"


@kind("block inserted", solvable=False)
def block_inserted(rng: random.Random, draft: Draft) -> None:
    """The checkpoint is one block deeper; which one the model lacks cannot be seen."""
    tree = children(draft.source)
    lists = [p for p, names in tree.items() if len(names) > 2 and all(map(str.isdigit, names))]
    equal = [p for p in lists if len({content(draft.source, (*p, n)) for n in tree[p]}) == 1]
    parent = pick(rng, equal)
    names = tree[parent]
    at = rng.randrange(len(names))
    new: dict[str, str] = {}
    for i, n in enumerate(names):
        new[n] = str(i if i < at else i + 1)
    head = ".".join(parent)
    old = dict(draft.source)
    draft.relabel({(*parent, n): (i,) for n, i in new.items()})
    twin = (*parent, names[at])
    cut = len(".".join(twin))
    extra = {f"{head}{'.' if head else ''}{at}{k[cut:]}": old[k] for k in below(old, twin)}
    draft.source = _by_number({**draft.source, **extra}, parent)


def _by_number(specs: dict[str, TensorSpec], parent: Path) -> dict[str, TensorSpec]:
    names = children(specs)[parent]
    return {k: specs[k] for k in reordered(specs, parent, sorted(names, key=int))}


@kind("two candidates", solvable=False)
def two_candidates(rng: random.Random, draft: Draft) -> None:
    """Two complete copies (raw and averaged, student and teacher): which one is a person's choice."""
    a, b = rng.choice((("model", "model_ema"), ("student", "teacher"), ("net", "ema"), ("online", "target")))
    both = {f"{p}.{k}": s for p in (a, b) for k, s in draft.source.items()}
    head = rng.choice((a, b))
    draft.truth = {t: Fill(tuple(f"{head}.{s}" for s in f.sources), f.ops) for t, f in draft.truth.items()}
    draft.source, draft.verdict = both, "policy_choice"


@kind("other width", solvable=False)
def other_width(rng: random.Random, draft: Draft) -> None:
    """Every width is another one by a constant ratio: another variant, or a shard."""
    factor = rng.choice((2, 3))
    wide = {
        k: replace(s, shape=tuple(d * factor if d > 4 else d for d in s.shape))
        for k, s in draft.source.items()
    }
    same = {k for k in wide if wide[k].shape == draft.source[k].shape}
    if len(same) > len(wide) / 2:
        raise NotApplicable
    draft.source = wide
    draft.truth = {t: f for t, f in draft.truth.items() if f.sources[0] in same}
    draft.verdict = "refuse"


@kind("all linears transposed", solvable=False)
def transposed(rng: random.Random, draft: Draft) -> None:
    """Every Linear weight is stored transposed; for the square ones no shape says so."""
    if any(k.endswith("in_proj_weight") for k in draft.source):
        raise NotApplicable  # it would stay as it is beside its transposed siblings, which nobody writes
    back = {f.sources[0]: t for t, f in draft.truth.items()}
    linear = {p for p, c in draft.modules.items() if "Linear" in c}
    found = [k for k in draft.source if k.endswith(".weight") and back[k].rpartition(".")[0] in linear]
    found = [k for k in found if len(draft.source[k].shape) == 2]
    if not any(draft.source[k].shape[0] != draft.source[k].shape[1] for k in found):
        raise NotApplicable
    for key in found:
        spec = draft.source[key]
        draft.source[key] = replace(spec, shape=spec.shape[::-1])
        draft.truth[back[key]] = Fill((key,), ("transpose(0,1)",))


@kind("another network", solvable=False)
def another_network(rng: random.Random, draft: Draft) -> None:
    """The checkpoint is of quite another network; no shape or name in common is a reason to load it."""
    stranger = pick(rng, draft.strangers)
    draft.source, draft.ordered = dict(stranger.specs), stranger.ordered
    draft.truth, draft.verdict = {}, "refuse"
