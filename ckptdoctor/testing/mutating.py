"""Hypothesis strategies for histories. Names may say nothing, but they never mislead.

``norm1`` and ``norm2`` exchanged leave nothing that a static check could see; such steps are not drawn.
A name is only replaced by a synonym, by its number or its class with a number, or by a word that says
nothing at all; then the file may be undecidable, and has to be asked about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from ckptdoctor.testing.drawing import CLASS_WORDS, NEUTRAL, networks
from ckptdoctor.testing.files import PLAIN
from ckptdoctor.testing.history import Added, Cast, Draft, Gone, History, Order, Path, Prefix, Relabel, Step
from ckptdoctor.testing.recipes import Network
from ckptdoctor.testing.rewriting import (
    Several,
    children,
    folded,
    fuse,
    gate_up,
    lists,
    modules,
    norm_form,
    normed,
    split,
    stacked,
    submodules,
    transpose,
    unstacked,
)
from ckptdoctor.testing.words import INNER, NESTED, OTHER_WORDS, PREFIXES, SYNONYMS

if TYPE_CHECKING:
    from torch import nn

_NUMBERED = re.compile(r"^(.*?)(_?\d+)?$", re.DOTALL)

Make = Callable[[st.DrawFn, Draft], "Step | Several | None"]


def prefix(draw: st.DrawFn, draft: Draft) -> Step | None:
    """DataParallel, torch.compile, Lightning's attribute."""
    return Prefix(draw(st.sampled_from(PREFIXES)))


def inside(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Wrappers around some modules."""
    paths = modules(list(draft.state))
    if not paths:
        return None
    word = draw(st.sampled_from(INNER))
    some = draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True))
    return Relabel(tuple((p, (p[-1], word)) for p in some))


def synonyms(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Other spellings, the same everywhere; never one that the tree has for something else."""
    segments = list(dict.fromkeys(s for k in draft.state for s in k.split(".")))
    new: dict[str, str] = {}
    for segment in segments:
        stem, number = _NUMBERED.match(segment).groups()  # type: ignore[union-attr]  # it matches every text
        row: tuple[str, ...] = next((row for row in SYNONYMS if stem in row), ())
        others: list[str] = [w + (number or "") for w in row if w != stem]
        others = [w for w in others if w not in segments and w not in new.values()]
        renamed: bool = draw(st.booleans()) if others else False
        if renamed:
            new[segment] = draw(st.sampled_from(others))
    paths = modules(list(draft.state))
    return Relabel(tuple((p, (new[p[-1]],)) for p in paths if p[-1] in new)) if new else None


def renumber(draw: st.DrawFn, draft: Draft) -> Step | None:
    """A list counted from one, or with gaps that grow."""
    found = lists(draft)
    if not found:
        return None
    parent, names = draw(st.sampled_from(found))
    steps = draw(st.lists(st.integers(1, 3), min_size=len(names), max_size=len(names)))
    number, labels = draw(st.integers(0, 1)), []
    for name, step in zip(sorted(names, key=int), steps, strict=True):
        labels.append(((*parent, name), (str(number),)))
        number += step
    return Relabel(tuple(labels))


def number_in_name(draw: st.DrawFn, draft: Draft) -> Step | None:
    """``layers.3`` becomes ``layers_3`` or ``layers4``."""
    found = [row for row in lists(draft) if row[0] and not row[0][-1][-1].isdigit()]
    keys = list(draft.state)
    found = [(p, n) for p, n in found if len(n) == len(children(keys)[p])]
    if not found:
        return None
    parent, names = draw(st.sampled_from(found))
    offset, style = draw(st.integers(0, 1)), draw(st.sampled_from(("{}{}", "{}_{}")))
    labels: list[tuple[Path, Path]] = [(parent, ())]
    labels += [((*parent, n), (style.format(parent[-1], int(n) + offset),)) for n in names]
    return Relabel(tuple(labels))


def index_to_class(draw: st.DrawFn, draft: Draft) -> Step | None:
    """``0``, ``1``, ``2`` become ``conv1``, ``bn1``, ``conv2``, each word counted in order."""
    found = lists(draft)
    if not found:
        return None
    parent, names = draw(st.sampled_from(found))
    counts: dict[str, int] = {}
    labels = []
    for name in sorted(names, key=int):
        word = _word(draft, (*parent, name))
        counts[word] = counts.get(word, 0) + 1
        labels.append(((*parent, name), (f"{word}{counts[word]}",)))
    return Relabel(tuple(labels))


def _word(draft: Draft, path: Path) -> str:
    """What one would call the module, by what it holds."""
    head = ".".join(path) + "."
    held = {k[len(head) :]: v for k, v in draft.state.items() if k.startswith(head)}
    if any("." in k for k in held):
        return "block"
    if "running_mean" in held:
        return CLASS_WORDS["BatchNorm2d"]
    shape = getattr(held.get("weight"), "shape", ())
    return {0: "part", 1: "norm", 2: "fc"}.get(len(shape), "conv")


def name_to_index(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Named children become 0, 1, 2 in an order; any order only where no name says one."""
    keys = list(draft.state)
    found = [(p, submodules(keys, p, names)) for p, names in children(keys).items()]
    found = [(p, n) for p, n in found if len(n) > 1 and not any(c.isdigit() for name in n for c in name)]
    if not found:
        return None
    parent, names = draw(st.sampled_from(found))
    if all(n in NEUTRAL for n in names):
        names = draw(st.permutations(names))
    gaps = draw(st.integers(1, 2))
    return Relabel(tuple(((*parent, n), (str(i * gaps),)) for i, n in enumerate(names)))


def opaque(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Some children of one module under words that say nothing."""
    keys = list(draft.state)
    found = [(p, submodules(keys, p, names)) for p, names in children(keys).items()]
    found = [row for row in found if row[1]]
    if not found:
        return None
    parent, names = draw(st.sampled_from(found))
    some = draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(OTHER_WORDS), unique=True))
    words = draw(st.permutations(OTHER_WORDS))
    return Relabel(tuple(((*parent, n), (w,)) for n, w in zip(some, words, strict=False)))


def nest(draw: st.DrawFn, draft: Draft) -> Step | None:
    """One level more around some children of a module."""
    keys = list(draft.state)
    found = [(p, submodules(keys, p, names)) for p, names in children(keys).items()]
    found = [row for row in found if row[1]]
    if not found:
        return None
    parent, names = draw(st.sampled_from(found))
    some = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    word = draw(st.sampled_from(NESTED))
    return Relabel(tuple(((*parent, n), (word, n)) for n in some))


def unnest(draw: st.DrawFn, draft: Draft) -> Step | None:
    """One level less: a module's children move up."""
    keys = list(draft.state)
    inner = modules(keys)
    found = [p for p in inner if submodules(keys, p, children(keys)[p]) and not p[-1].isdecimal()]
    return Relabel(((draw(st.sampled_from(found)), ()),)) if found else None


def order(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Registered in another order; or a header sorted by name."""
    keys = list(draft.state)
    heads = list(dict.fromkeys(k.split(".")[0] for k in keys))
    if draw(st.booleans()):
        turned = sorted(keys)
    else:
        turn = draw(st.permutations(heads))
        turned = sorted(keys, key=lambda k: turn.index(k.split(".")[0]))
    return Order(tuple(keys.index(k) for k in turned))


def cast(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Saved in half precision, or in double."""
    return Cast(draw(st.sampled_from(("float16", "bfloat16", "float64"))))


def gone(draw: st.DrawFn, draft: Draft) -> Step | None:
    """Some tensors are not in the file."""
    if len(draft.state) < 4:
        return None
    return Gone(
        tuple(draw(st.lists(st.sampled_from(list(draft.state)), min_size=1, max_size=3, unique=True)))
    )


def added(draw: st.DrawFn, draft: Draft) -> Step | None:
    """A tensor too many, shaped like one that is needed."""
    shapes = [tuple(v.shape) for v in draft.state.values() if hasattr(v, "shape")] or [(3,)]
    return Added(f"{draw(st.sampled_from(OTHER_WORDS))}.weight", draw(st.sampled_from(shapes)))


NAMING: tuple[Make, ...] = (
    prefix, inside, synonyms, renumber, number_in_name, index_to_class, name_to_index, opaque, nest, unnest,
    order,
)  # fmt: skip
OTHER: tuple[Make, ...] = (
    fuse, split, gate_up, stacked, unstacked, norm_form, folded, normed, transpose, cast, gone, added,
)  # fmt: skip
ALL = {make.__name__: make for make in (*NAMING, *OTHER)}


@st.composite
def histories(draw: st.DrawFn, state: Mapping[str, Any], *, only: Sequence[str] = (), most: int = 4,
              linears: Collection[str] = ()) -> History:  # fmt: skip
    """A history for a state dict: up to ``most`` steps of the kinds in ``only`` (default: all), and a file.

    ``linears`` are the keys of matrices that other frameworks store transposed; see :func:`linears_of`.
    """
    steps: list[Step] = []
    draft = Draft.of(state, linears)
    kinds = st.sampled_from(list(only) or list(ALL))
    for name in draw(st.lists(kinds, max_size=most)):
        step = ALL[name](draw, draft)
        done: tuple[Step, ...] = ()
        if isinstance(step, Several):
            done, step = tuple(step.done), step.last
        if step is None:
            continue
        try:
            step.apply(draft)
        except ValueError:
            continue  # two keys would get one name
        if not _prefix_free(draft.state):
            break
        steps += [*done, step]
    return draw(_saved(tuple(steps), state))


def _prefix_free(keys: Mapping[str, Any]) -> bool:
    """No key may be the path of a module of another: no module could hold that."""
    return not any(".".join(k.split(".")[:i]) in keys for k in keys for i in range(1, len(k.split("."))))


@st.composite
def _saved(draw: st.DrawFn, steps: tuple[Step, ...], state: Mapping[str, Any]) -> History:
    form = draw(
        st.sampled_from(("zip", "zip", "legacy", "safetensors", "safetensors shards", "torch shards"))
    )
    if form in PLAIN:
        return History(steps, form=form)
    module = form == "zip" and draw(st.integers(0, 3)) == 0
    envelope = draw(st.sampled_from(((), (), ("state_dict",), ("model",), ("net", "params"))))
    return History(
        steps,
        envelope,
        draw(st.sampled_from(("", "", "", "ema", "state_dict_ema"))) if envelope else "",
        draw(st.sampled_from(("", "", "cuda:3", "mps"))),
        form,
        draw(st.integers(2, 5)),
        not steps and draw(st.booleans()),
        module,
    )


@st.composite
def pairs(draw: st.DrawFn, *, only: Sequence[str] = (), odd: bool = True) -> tuple[Network, History]:
    """A network, and how a checkpoint of it came to be."""
    network = draw(networks(odd=odd))
    model = network.build()
    return network, draw(histories(model.state_dict(), only=only, linears=linears_of(model)))


def linears_of(model: nn.Module) -> list[str]:
    """The weights of a model's linear layers."""
    from torch import nn

    return [
        f"{path}.weight" if path else "weight" for path, m in model.named_modules() if type(m) is nn.Linear
    ]
