"""From matched units to op chains: which tensors are transposed, reshaped or combined.

A layout is a property of a family: members whose shapes show it vote, square members follow the
vote, and without a vote they stay undecided as soon as anything hints at another layout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from ckptdoctor.align.names import unnumbered
from ckptdoctor.align.units import Leaf, Shape, Unit, is_stacked

Chain = tuple[str, ...]
Families = tuple[tuple[str, str], ...]
Votes = dict[tuple[str, str], set[Chain]]

TURN = "transpose(0,1)"

_WIDE = ("block", "class")  # families of tensors that have other names
_SEVERAL = 2  # layers, not counted by their blocks, whose word counts for such a family
TURNED_CLASSES = frozenset({"Conv1D"})  # transformers' linear layer of GPT-2: weights are [in, out]


@dataclass(eq=False, slots=True)
class Pair:
    """One leaf of a matched pair; ``options`` are the chains that the shapes allow."""

    source: Unit
    target: Unit
    role: str
    options: tuple[Chain, ...]
    chosen: Chain | None = None
    why: str = ""


def options(src: Leaf, dst: Shape, stacked: bool = False) -> tuple[Chain, ...]:
    """Chains that turn the source shape into ``dst``, likeliest first; () when none does.

    ``stacked`` tensors hold one matrix for each expert, which may be transposed.
    """
    return _options(src.shape, dst, stacked)


@lru_cache(maxsize=65536)
def _options(shape: Shape, dst: Shape, stacked: bool) -> tuple[Chain, ...]:
    if prod(shape) != prod(dst):
        return ()
    found: list[Chain] = []
    if shape == dst:
        found.append(())
    if len(shape) == len(dst) == 2 and shape[::-1] == dst and (min(shape) > 1 or shape != dst):
        found.append((TURN,))
    if stacked and shape[0] == dst[0] and shape[:0:-1] == dst[1:] and min(shape[1:]) > 1:
        found.append(("transpose(1,2)",))
    if found:
        return tuple(found)
    squeezed_s, squeezed_d = [d for d in shape if d != 1], [d for d in dst if d != 1]
    if squeezed_s == squeezed_d:
        return ((f"reshape({','.join(map(str, dst))})",),)
    if len(shape) == 2 and len(dst) > 2 and shape[0] == dst[0] and shape[1] == prod(dst[1:]):
        return ((f"reshape({','.join(map(str, dst))})",),)
    if len(dst) == 2 and len(shape) > 2 and shape[0] == dst[0] and dst[1] == prod(shape[1:]):
        return ((f"reshape({','.join(map(str, dst))})",),)
    return ()


def _leaf_word(key: str) -> str:
    return key.replace("/", ".").rpartition(".")[2]


def make_pairs(source: Unit, target: Unit) -> list[Pair] | None:
    """Pairs of all common roles; None when a shape fits in no way."""
    pairs = []
    stacked = is_stacked(source)
    for role, leaf in target.leaves.items():
        mine = source.leaves.get(role)
        if mine is None:
            continue
        found = _options(mine.shape, leaf.shape, stacked)
        if not found:
            return None
        pairs.append(Pair(source, target, role, found))
    return pairs


def decide(pairs: Sequence[Pair]) -> None:
    """Choose among several options by the vote of the family."""
    if all(len(pair.options) == 1 for pair in pairs):
        for pair in pairs:
            pair.chosen = pair.options[0]
        return
    votes: Votes = defaultdict(set)
    voters: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
    for pair in pairs:
        if len(pair.options) == 1:
            pair.chosen = pair.options[0]
            families = _families(pair)
            for family in families:
                votes[family].add(_kind(pair.chosen))
            if any(len(voters[family]) < _SEVERAL for family in families):
                voter = unnumbered(tuple(pair.target.path.split(".")))
                for family in families:
                    voters[family].add(voter)
    # That one layer is turned (a head, say) does not show that its neighbours are.
    votes = {
        f: cast
        for f, cast in votes.items()
        if cast == {()} or len(voters[f]) >= _SEVERAL or f[0] not in _WIDE
    }
    turned = any(p.chosen and _kind(p.chosen) and _votes(p) for p in pairs)
    known: dict[tuple[Families, tuple[Chain, ...]], tuple[Chain | None, str]] = {}
    for pair in pairs:
        if pair.chosen is None:
            alike = _families(pair), pair.options
            if alike not in known:
                known[alike] = _voted(*alike, votes)
            pair.chosen, pair.why = known[alike]
            if pair.chosen is None and not turned and () in pair.options and not _hinted(pair):
                pair.chosen = ()


def _voted(families: Families, ways: tuple[Chain, ...], votes: Votes) -> tuple[Chain | None, str]:
    """The one way that the narrowest family of one mind votes for, and the reason in words."""
    for family in families:
        cast = votes.get(family, set())
        if len(cast) == 1:
            kind = next(iter(cast))
            fitting = [o for o in ways if _kind(o) == kind]
            if len(fitting) == 1:
                return fitting[0], f"as the other `{family[1]}`"
    return None, ""


def doubtful(pairs: Sequence[Pair]) -> list[Pair]:
    """Tensors that fit in one way, for no other reason than their shapes, which may mean something else."""
    return [*_turned_alone(pairs), *(p for p in pairs if _reshaped(p) and _exchanges_axes(p))]


def _reshaped(pair: Pair) -> bool:
    return pair.chosen is not None and any(op.startswith("reshape(") for op in pair.chosen)


def _exchanges_axes(pair: Pair) -> bool:
    """Whether a module's axes of one item are elsewhere: a kernel of 3 x 1 for 1 x 3, inputs for outputs."""
    mine, theirs = (unit.leaves[pair.role].shape for unit in (pair.source, pair.target))
    if pair.source.bare or pair.target.bare or min(len(mine), len(theirs)) < 2:
        return False
    return mine[0] != theirs[0] or (len(mine) == len(theirs) and sum(d != 1 for d in theirs) > 1)


def _turned_alone(pairs: Sequence[Pair]) -> list[Pair]:
    """Matrices that are turned though it is not clear that they are.

    A bias shows where the outputs are; `kernel` and Conv1D say so. Without that, a matrix alone among others
    that fit as they are may be another network's; and so may all, if each fits as it is in another's place.
    """
    turned = [p for p in pairs if p.options == ((TURN,),) and p.source.bare == p.target.bare]
    doubted = [p for p in turned if not (_has_bias(p) or _hinted(p) or p.target.cls in TURNED_CLASSES)]
    if not doubted:
        return []
    mine = sorted(p.source.leaves[p.role].shape for p in doubted)
    if mine == sorted(p.target.leaves[p.role].shape for p in doubted):
        return doubted
    straight = [p for p in pairs if p.options == ((),) and _families(p) and _votes(p)]
    like = {_families(p)[0] for p in straight}
    alone = straight and len({unnumbered(tuple(p.target.path.split("."))) for p in turned}) < _SEVERAL
    return [p for p in doubted if alone or _families(p)[0] in like or not _votes(p)]


def _has_bias(pair: Pair) -> bool:
    return "bias" in pair.source.leaves and "bias" in pair.target.leaves


def _hinted(pair: Pair) -> bool:
    """Whether names or classes alone suggest another layout: a `kernel` becomes a `weight`, a Conv1D."""
    if pair.target.cls in TURNED_CLASSES and pair.source.path != pair.target.path:
        return True
    mine = _leaf_word(pair.source.leaves[pair.role].keys[0])
    theirs = _leaf_word(pair.target.leaves[pair.role].keys[0])
    return mine != theirs and "kernel" in (mine, theirs)


def _kind(chain: Chain | None) -> Chain:
    """What a vote is about: whether axes are turned; a reshape keeps their order."""
    if not chain:
        return ()
    return ("turned",) if any(c.startswith(("transpose", "permute")) for c in chain) else ()


def _thin(pair: Pair) -> bool:
    """Whether it is one vector: a parameter of one row is no matrix, but a layer with one output has one."""
    return _is_thin(pair.target.leaves[pair.role].shape, pair.source.bare)


@lru_cache(maxsize=65536)
def _is_thin(shape: Shape, bare: bool) -> bool:
    matrix = len(shape) == 2 and not bare and prod(shape) > 1
    return not matrix and sum(d != 1 for d in shape) < 2


def _votes(pair: Pair) -> bool:
    own = pair.source.name.concepts[-1] if pair.source.name.concepts else ()
    return not _thin(pair) and "embed" not in own  # a table of its own is no layer


def _families(pair: Pair) -> Families:
    """From narrow to wide: same module words, same tensor word, same class and block."""
    shape = pair.target.leaves[pair.role].shape
    if len(shape) < 2 or _thin(pair):
        return ()
    word = _leaf_word(pair.source.leaves[pair.role].keys[0])
    return _families_of(pair.source.name.skeleton, word, len(shape), pair.source.bare, pair.target.cls)


@lru_cache(maxsize=65536)
def _families_of(skeleton: str, word: str, rank: int, is_bare: bool, cls: str) -> Families:
    bare = "bare" if is_bare else "module"
    # A table that is looked up is no matrix that is multiplied, though both are called `weight`.
    looked_up = "table" if "Embedding" in cls else "matrix"
    kind = f"{bare}/{looked_up}/{rank}"
    families = [
        ("path", f"{skeleton}.{word}/{kind}"),
        ("name", f"{skeleton.rpartition('.')[2]}.{word}/{kind}"),
    ]
    if word == "kernel":
        families.append(("leaf", f"{word}/{kind}"))
    if "#" in skeleton:
        families.append(("block", f"{skeleton[: skeleton.rindex('#') + 1]}/{word}/{kind}"))
    if cls:
        families.append(("class", f"{cls}/{kind}"))
    return tuple(families)
