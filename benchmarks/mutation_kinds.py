"""Mutations that leave the answer determined: other names, numbers, order, levels, layouts."""

from __future__ import annotations

import random
from dataclasses import replace

from benchmarks.cases import Fill
from benchmarks.mutations import KINDS, Draft, kind
from benchmarks.nodes import NotApplicable, Path, below, children, nodes, pick, reordered
from benchmarks.words import GROUPS, INNER, NEUTRAL, PREFIXES, is_norm, split_number, synonym
from ckptdoctor.trees import TensorSpec

Specs = dict[str, TensorSpec]
QKV = tuple({*row} for row in (("q_proj", "query", "to_q", "q"), ("k_proj", "key", "to_k", "k"),
                               ("v_proj", "value", "to_v", "v")))  # fmt: skip


def plain_only(draft: Draft) -> None:
    """Mutations of layouts start from copies."""
    if any(f.ops or len(f.sources) > 1 for f in draft.truth.values()):
        raise NotApplicable


@kind("wrap", solvable=True)
def wrap(rng: random.Random, draft: Draft) -> None:
    """A wrapper's or base model's name in front of every key."""
    prefix = rng.choice(PREFIXES)
    draft.rename_source({k: f"{prefix}.{k}" for k in draft.source})


@kind("wrap inside", solvable=True)
def wrap_inside(rng: random.Random, draft: Draft) -> None:
    """torch.compile, FSDP or activation checkpointing around modules anywhere in the tree."""
    inner = rng.choice(INNER)
    found = nodes(draft.source)
    count = rng.randint(1, max(1, len(found) // 3))
    draft.relabel({n: (n[-1], inner) for n in rng.sample(found, min(count, len(found)))})


@kind("synonyms", solvable=True)
def synonyms(rng: random.Random, draft: Draft) -> None:
    """Every segment with other spellings may get one, the same everywhere."""
    new: dict[str, str] = {}
    for node in [*nodes(draft.source), *(tuple(k.split(".")) for k in draft.source)]:
        if node[-1] not in new:
            new[node[-1]] = synonym(rng, node[-1]) if rng.random() < 0.6 else node[-1]
    _require(any(a != b for a, b in new.items()))
    everywhere = [*nodes(draft.source), *(tuple(k.split(".")) for k in draft.source)]
    draft.relabel({n: (new[n[-1]],) for n in everywhere})


def _require(condition: object) -> None:
    if not condition:
        raise NotApplicable


@kind("gamma and beta", solvable=True)
def gamma_beta(rng: random.Random, draft: Draft) -> None:
    """weight and bias of all norms under their old names."""
    labels: dict[Path, Path] = {}
    for key in draft.source:
        path = tuple(key.split("."))
        if len(path) > 1 and is_norm(path[-2]) and path[-1] in ("weight", "bias"):
            labels[path] = ("gamma" if path[-1] == "weight" else "beta",)
    _require(labels)
    draft.relabel(labels)


@kind("renumber", solvable=True)
def renumber(rng: random.Random, draft: Draft) -> None:
    """Numbered children counted from one, or with gaps where a Dropout or ReLU came in."""
    lists = [
        p for p, names in children(draft.source).items() if len(names) > 1 and all(map(str.isdigit, names))
    ]
    skeleton = tuple("#" if s.isdigit() else s for s in pick(rng, lists))
    gaps = rng.random() < 0.5
    labels: dict[Path, Path] = {}
    longest = max(len(children(draft.source)[p]) for p in lists)
    steps = [rng.choice((1, 2, 3)) if gaps else 1 for _ in range(longest)]
    for parent in lists:
        if tuple("#" if s.isdigit() else s for s in parent) == skeleton:
            number = 0 if gaps else 1
            for i, name in enumerate(sorted(children(draft.source)[parent], key=int)):
                labels[(*parent, name)] = (str(number),)
                number += steps[i]
    draft.relabel(labels)


@kind("number in name", solvable=True)
def number_in_name(rng: random.Random, draft: Draft) -> None:
    """``layers.3`` becomes ``layer_3`` or ``layer4``, or the other way round."""
    tree = children(draft.source)
    lists = [p for p, names in tree.items() if p and len(names) > 1 and all(map(str.isdigit, names))]
    parent = pick(rng, lists)
    offset, style = rng.randint(0, 1), rng.choice(("{}{}", "{}_{}", "{}s{}"))
    same = [p for p in lists if p[-1] == parent[-1]]
    labels: dict[Path, Path] = {}
    for p in same:
        labels[p] = ()
        for name in tree[p]:
            labels[(*p, name)] = (style.format(p[-1], int(name) + offset),)
    draft.relabel(labels)


@kind("name to number", solvable=True)
def name_to_number(rng: random.Random, draft: Draft) -> None:
    """``layer1 layer2 layer3`` become ``stages.0 stages.1 stages.2``."""
    found: list[tuple[Path, str, list[str]]] = []
    for parent, names in children(draft.source).items():
        stems: dict[str, list[str]] = {}
        for name in names:
            stem, number = split_number(name)
            if number and stem and ".".join((*parent, name)) not in draft.source:
                stems.setdefault(stem, []).append(name)
        found += [(parent, stem, members) for stem, members in stems.items() if len(members) > 2]
    parent, stem, members = pick(rng, found)
    first = min(int(split_number(m)[1]) for m in members)
    group = rng.choice((stem, stem.rstrip("_") + "s", "stages"))
    draft.relabel({(*parent, m): (group, str(int(split_number(m)[1]) - first)) for m in members})


@kind("reorder", solvable=True)
def reorder(rng: random.Random, draft: Draft) -> None:
    """Modules registered in another order, with their names."""
    order = list(draft.source)
    for parent, names in children(draft.source).items():
        if rng.random() < 0.6 and not all(map(str.isdigit, names)):
            order = reordered(order, parent, rng.sample(names, len(names)))
    draft.source = {k: draft.source[k] for k in order}


@kind("reorder, synonyms", solvable=True)
def reorder_synonyms(rng: random.Random, draft: Draft) -> None:
    """Modules registered in another order and spelled otherwise."""
    reorder(rng, draft)
    synonyms(rng, draft)


@kind("shortcut first", solvable=True)
def shortcut_first(rng: random.Random, draft: Draft) -> None:
    """The shortcut registered before the convolutions that it goes around, under a synonym."""
    words = ("downsample", "shortcut", "skip")
    tree = children(draft.source)
    parents = [p for p, names in tree.items() if any(n in words for n in names)]
    _require(parents)
    order = list(draft.source)
    for parent in parents:
        order = reordered(order, parent, sorted(tree[parent], key=lambda n: n not in words))
    draft.source = {k: draft.source[k] for k in order}
    new = rng.choice([*words, "skip_connection"])
    draft.relabel({(*p, n): (new,) for p in parents for n in tree[p] if n in words})


@kind("q, k, v permuted", solvable=True)
def permute_qkv(rng: random.Random, draft: Draft) -> None:
    """Attention's projections registered in another order, under other names for the same."""
    tree = children(draft.source)
    parents = [p for p, names in tree.items() if all(row & set(names) for row in QKV)]
    _require(parents)
    style = rng.choice([tuple(sorted(row)[i] for row in QKV) for i in range(4)])
    order = list(draft.source)
    labels: dict[Path, Path] = {}
    turn = rng.sample(range(3), 3)
    for parent in parents:
        trio = [next(n for n in tree[parent] if n in row) for row in QKV]
        rest = [n for n in tree[parent] if n not in trio]
        order = reordered(order, parent, [*(trio[i] for i in turn), *rest])
        labels |= {(*parent, name): (style[i],) for i, name in enumerate(trio)}
    draft.source = {k: draft.source[k] for k in order}
    draft.relabel(labels)


@kind("nest", solvable=True)
def nest(rng: random.Random, draft: Draft) -> None:
    """One level more around some children of a module."""
    tree = {p: n for p, n in children(draft.source).items() if len(n) > 1}
    parent = pick(rng, list(tree))
    group = rng.choice(GROUPS)
    inside = [n for n in tree[parent] if rng.random() < 0.6] or tree[parent]
    same = [
        p
        for p in tree
        if tuple(s for s in p if not s.isdigit()) == tuple(s for s in parent if not s.isdigit())
    ]
    labels = {(*p, n): (group, n) for p in same for n in tree[p] if n in inside}
    draft.relabel({k: v for k, v in labels.items() if ".".join(k) not in draft.source})


@kind("unnest", solvable=True)
def unnest(rng: random.Random, draft: Draft) -> None:
    """One level less: a module's children move up, everywhere it has this name."""
    tree = children(draft.source)
    inner = set(nodes(draft.source))
    parents = {n[:-1] for n in inner}
    names = {n[-1] for n in inner & parents if not n[-1].isdigit() and len(tree[n]) > 1}
    name = pick(rng, sorted(names))
    draft.relabel({n: () for n in nodes(draft.source) if n[-1] == name})


@kind("chunked blocks", solvable=True)
def chunked(rng: random.Random, draft: Draft) -> None:
    """``blocks.5`` becomes ``blocks.1.5``: chunks of blocks that keep their numbers (DINOv2, FSDP)."""
    tree = children(draft.source)
    lists = [p for p, names in tree.items() if len(names) > 2 and all(map(str.isdigit, names))]
    lists = [p for p in lists if all(len(tree.get((*p, n), ())) > 1 for n in tree[p])]
    parent = pick(rng, lists)
    size = rng.randint(2, max(2, len(tree[parent]) // 2))
    keep = rng.random() < 0.6
    labels = {}
    for name in tree[parent]:
        i = int(name)
        labels[(*parent, name)] = (str(i // size), name if keep else str(i % size))
    draft.relabel(labels)


@kind("blocks in other order", solvable=True)
def swap_blocks(rng: random.Random, draft: Draft) -> None:
    """Two numbered blocks stand in exchanged order in the file; their names are right."""
    tree = children(draft.source)
    lists = [p for p, names in tree.items() if len(names) > 1 and all(map(str.isdigit, names))]
    parent = pick(rng, lists)
    order = list(tree[parent])
    i, j = rng.sample(range(len(order)), 2)
    order[i], order[j] = order[j], order[i]
    draft.source = {k: draft.source[k] for k in reordered(draft.source, parent, order)}


@kind("sorted file, synonyms", solvable=True)
def sorted_file(rng: random.Random, draft: Draft) -> None:
    """A header sorted by name: its order proves nothing."""
    synonyms(rng, draft)
    draft.source = dict(sorted(draft.source.items()))
    draft.ordered = False


@kind("head dropped", solvable=True)
def drop_head(rng: random.Random, draft: Draft) -> None:
    """The checkpoint has no head; the model's stays at its initial values."""
    plain_only(draft)
    last = list(draft.source)[-1].rpartition(".")[0]
    gone = below(draft.source, tuple(last.split("."))) if last else []
    _require(gone and len(gone) < len(draft.source) / 2)
    for key in gone:
        del draft.source[key]
    lost = [t for t, f in draft.truth.items() if f.sources[0] in set(gone)]
    for target in lost:
        del draft.truth[target]
        draft.unfilled[target] = "missing-ok"
    if rng.random() < 0.5:
        wrap(rng, draft)


@kind("modules added", solvable=True)
def add_modules(rng: random.Random, draft: Draft) -> None:
    """Further modules in the checkpoint, shaped like ones that the model has."""
    plain_only(draft)
    found = [n for n in nodes(draft.source) if 1 < len(below(draft.source, n)) < len(draft.source) / 2]
    head = rng.choice(NEUTRAL)
    twin = pick(rng, found)
    cut = len(".".join(twin))
    extra = {f"{head}{k[cut:]}": draft.source[k] for k in below(draft.source, twin)}
    draft.source = {**draft.source, **extra} if rng.random() < 0.5 else {**extra, **draft.source}


@kind("q, k, v fused", solvable=True)
def fuse(rng: random.Random, draft: Draft) -> None:
    """The checkpoint holds q, k and v in one tensor."""
    plain_only(draft)
    back = {f.sources[0]: t for t, f in draft.truth.items()}
    for trio, leaf in _trios(draft):
        parts = [f"{m}.{leaf}" for m in trio]
        _require(all(p in back for p in parts))
        fused = f"{trio[0].rpartition('.')[0]}.qkv.{leaf}"
        spec = draft.source[parts[0]]
        whole = replace(spec, shape=(3 * spec.shape[0], *spec.shape[1:]))
        draft.source = _replaced(draft.source, parts, {fused: whole})
        for i, part in enumerate(parts):
            draft.truth[back[part]] = Fill((fused,), (f"chunk(0,{i},3)",))


@kind("q, k, v split", solvable=True)
def split(rng: random.Random, draft: Draft) -> None:
    """The checkpoint holds q, k and v apart, the model in one tensor."""
    plain_only(draft)
    back = {f.sources[0]: t for t, f in draft.truth.items()}
    found = [k for k in back if k.endswith((".qkv.weight", ".qkv.bias"))]
    _require(found)
    order = rng.choice((("q", "k", "v"), ("k", "v", "q"), ("k", "q", "v")))
    form = rng.choice(("{}_proj", "to_{}", "{}"))
    for key in found:
        stem, _, leaf = key.rpartition(".")
        parent = stem.rpartition(".")[0]
        spec = draft.source[key]
        part = replace(spec, shape=(spec.shape[0] // 3, *spec.shape[1:]))
        names = {x: f"{parent}.{form.format(x)}.{leaf}" for x in order}
        draft.source = _replaced(draft.source, [key], {names[x]: part for x in order})
        draft.truth[back[key]] = Fill(tuple(names[x] for x in "qkv"), ("concat(0)",))


def _trios(draft: Draft) -> list[tuple[list[str], str]]:
    tree = children(draft.source)
    found = []
    for parent, names in tree.items():
        if not all(row & set(names) for row in QKV):
            continue
        trio = [".".join((*parent, next(n for n in names if n in row))) for row in QKV]
        for leaf in ("weight", "bias"):
            specs = [draft.source.get(f"{m}.{leaf}") for m in trio]
            shapes = {s.shape for s in specs if s is not None}
            if len(shapes) == 1 and None not in specs:
                found.append((trio, leaf))
    _require(found)
    return found


def _replaced(specs: Specs, gone: list[str], new: Specs) -> Specs:
    result: Specs = {}
    for key, spec in specs.items():
        if key == gone[0]:
            result |= new
        if key not in gone:
            result[key] = spec
    return result


@kind("linear as 1x1 conv", solvable=True)
def pointwise(rng: random.Random, draft: Draft) -> None:
    """Linear layers of some names are 1x1 convolutions in the checkpoint."""
    plain_only(draft)
    back = {f.sources[0]: t for t, f in draft.truth.items()}
    linear = [k for k in back if len(draft.source[k].shape) == 2 and k.count(".") and k.endswith(".weight")]
    name = pick(rng, sorted({k.split(".")[-2] for k in linear}))
    for key in linear:
        if key.split(".")[-2] == name:
            shape = draft.source[key].shape
            draft.source[key] = replace(draft.source[key], shape=(*shape, 1, 1))
            draft.truth[back[key]] = Fill((key,), (f"reshape({shape[0]},{shape[1]})",))


@kind("mixed", solvable=True)
def mixed(rng: random.Random, draft: Draft) -> None:
    """Two to four of the name mutations on top of each other."""
    names = ("wrap", "wrap inside", "synonyms", "renumber", "reorder", "nest", "unnest", "number in name",
             "name to number", "chunked blocks", "gamma and beta")  # fmt: skip
    done = 0
    for name in rng.sample(names, len(names)):
        if done == rng.choice((2, 3, 4)):
            break
        try:
            KINDS[name].change(rng, draft)
            done += 1
        except NotApplicable:
            continue
    _require(done)


@kind("model side", solvable=True)
def model_side(rng: random.Random, draft: Draft) -> None:
    """The same, but the model has the new names and the checkpoint the old ones."""
    mixed(rng, draft)
    draft.mirror()
