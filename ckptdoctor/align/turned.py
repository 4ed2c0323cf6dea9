"""Layouts that the tree as a whole puts in doubt, though each tensor's shape fits as it is."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ckptdoctor.align.checks import take_back
from ckptdoctor.align.doubts import SPOKEN
from ckptdoctor.align.model import Choice, Match
from ckptdoctor.align.names import leaf_role
from ckptdoctor.align.orient import TURN, doubtful
from ckptdoctor.align.units import Shape

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

_PACKING = ("chunk(0,", "slice(0,", "concat(0)")


def packs(state: State) -> None:
    """Square matrices that were joined along their rows, beside matrices that are kept the other way round.

    Whether they were turned before they were joined, no shape shows.
    """
    claims = [m for m in state.matches.values() if m.status == "safe"]
    if not any(m.ops and _module_turned(m) for m in claims):
        return
    for match in claims:
        packed = [op for op in match.ops if op.startswith(_PACKING)]
        if not packed or TURN in match.ops or not _square(state, match):
            continue
        turned = (*match.ops, TURN) if len(match.sources) == 1 else (f"each:{TURN}", *match.ops)
        why = "other matrices are kept the other way round; these were joined, and may be as well"
        take_back(
            state, [match.target], why, {match.target: [Choice(match.sources, turned, "each one turned")]}
        )


def _module_turned(match: Match) -> bool:
    """Whether a module's own matrix is turned; a bare parameter (`x @ text_projection`) is its own thing."""
    if TURN not in match.ops:
        return False
    leaves = {leaf_role(k.rpartition(".")[2]) for k in (match.target, *match.sources)}
    return leaves == {"weight"}


def _square(state: State, match: Match) -> bool:
    """Whether each part of what is packed is a square matrix."""
    shapes = (
        [state.source[s].shape for s in match.sources]
        if len(match.sources) > 1
        else [state.target[match.target].shape]
    )
    return all(len(s) == 2 and s[0] == s[1] > 1 for s in shapes)


def unproved(state: State) -> None:
    """Tensors of which only the shapes say that they are laid out in another way, and not clearly."""
    for pair in doubtful(state.pairs):
        target = pair.target.leaves[pair.role].keys[0]
        key = state.target_names.get(target, target)
        match = state.matches.get(key)
        if match is not None and match.ops == pair.chosen:
            why = f"it only fits through `{'|'.join(match.ops)}`, and nothing but its shape says so"
            take_back(state, [key], why)


def exchanged(state: State) -> None:
    """Two matrices of one module that fit as they are, or each in the other's place when both are turned."""
    if all(map(_named, {m.evidence for m in state.matches.values()})):
        return
    rows = [m for m in state.matches.values() if m.status == "safe" and not m.ops and _oblong(state, m)]
    if not rows:
        return
    modules: dict[str, list[Match]] = defaultdict(list)
    for match in rows:
        modules[match.target.rpartition(".")[0].rpartition(".")[0]].append(match)
    turning = {a for m in state.matches.values() if m.ops and _module_turned(m) for a in _above(m.target)}
    places = {k: i for i, k in enumerate(state.source.specs)}
    for module, found in modules.items():
        for one, two in _turned_pairs(state, found):
            falls = state.source.ordered and places[one.sources[0]] > places[two.sources[0]]
            if module in turning or (falls and not _spoken(one) and not _spoken(two)):
                _ask_both(state, one, two)


def _turned_pairs(state: State, found: Sequence[Match]) -> Iterator[tuple[Match, Match]]:
    """Each two of which one has the shape of the other when it is turned, in order."""
    shapes = [state.target[m.target].shape for m in found]
    places: dict[Shape, list[int]] = defaultdict(list)
    for place, shape in enumerate(shapes):
        places[shape].append(place)
    for place, shape in enumerate(shapes):
        others = places.get(shape[::-1], ())
        for other in others[bisect_right(others, place) :]:
            yield found[place], found[other]


def _above(key: str) -> Iterator[str]:
    """The modules that hold the key, from the innermost to the whole, which is ``""``."""
    while key:
        key = key.rpartition(".")[0]
        yield key


def _oblong(state: State, match: Match) -> bool:
    """Whether the shape alone says which way the matrix is kept, and what it is."""
    if len(match.sources) != 1 or _named(match.evidence):
        return False
    shape = state.target.shapes[match.target]
    return len(shape) == 2 and shape[0] != shape[1] and 1 not in shape


@lru_cache(maxsize=4096)
def _named(evidence: tuple[str, ...]) -> bool:
    return any(e == "same name" or e.startswith("both are") for e in evidence)


def _spoken(match: Match) -> bool:
    return any(e.startswith(SPOKEN) for e in match.evidence)


def _ask_both(state: State, one: Match, two: Match) -> None:
    why = "it fits as it is, and the other way round in the other's place"
    more = {
        a.target: [Choice(b.sources, (TURN,), "both of them turned")] for a, b in ((one, two), (two, one))
    }
    take_back(state, list(more), why, more)
