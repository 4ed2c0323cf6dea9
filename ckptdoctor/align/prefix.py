"""Bring both trees into one space: wrapper segments off, one base prefix off on either side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ckptdoctor.align.model import Strip
from ckptdoctor.align.units import Shape, canonical_shape
from ckptdoctor.wrappers import BY_SEGMENT, strip_key, strip_keys, wrapper_counts

_MOST = 32  # prefixes tried a side
_LARGE = 4000  # keys beyond which only few prefixes are tried
_MOST_IN_LARGE = 6


@dataclass
class Canonical:
    """Canonical name -> the first key that has it, for one side; and all keys where there are several."""

    names: dict[str, str]
    duplicates: dict[str, list[str]] = field(default_factory=dict)


def canonical(keys: Iterable[str]) -> Canonical:
    """Names without wrapper segments; several keys may fall together (reported, never merged)."""
    keys = list(keys)
    names = strip_keys(keys)
    found = dict(zip(names, keys, strict=True))
    if len(found) == len(keys):
        return Canonical(found)
    found = {}
    several: dict[str, list[str]] = {}
    for name, key in zip(names, keys, strict=True):
        first = found.setdefault(name, key)
        if first is not key:
            several.setdefault(name, [first]).append(key)
    return Canonical(found, {n: several[n] for n in found if n in several})


@dataclass(frozen=True, slots=True)
class Base:
    """Prefixes taken off the checkpoint's and the model's names; ``rivals`` explain as much."""

    source: str
    target: str
    exact: int
    rivals: tuple[str, ...] = ()  # other parts of the checkpoint
    places: tuple[str, ...] = ()  # other parts of the model


def find_base(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Base:
    """The pair of prefixes under which most names and shapes agree; shortest wins a draw."""
    large = max(len(source), len(target)) > _LARGE
    scored = list((_few if large else _all)(source, target))
    if not scored:
        return Base("", "", 0)
    best = min(scored, key=lambda row: (-row[0], len(row[1]) + len(row[2]), row[1:]))
    plain = max((n for n, p, q in scored if not p and not q), default=0)
    smaller = min(len(source), len(target))
    if best[0] * 2 < smaller or best[0] - plain < 0.1 * smaller:
        best = (plain, "", "")
    mirrored = [(n, q, p) for n, p, q in scored]
    rivals = _rivals(scored, best, len(target))
    places = _rivals(mirrored, (best[0], best[2], best[1]), len(source))
    if rivals and places:  # twins on both sides: their names have to tell them apart
        return Base("", "", plain)
    return Base(best[1], best[2], best[0], rivals, places)


Scored = Iterator[tuple[int, str, str]]  # so many agree under this prefix and that


def _all(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Scored:
    """All pairs of prefixes under which anything agrees."""
    sets_s, sets_t = _relative(source), _relative(target)
    for p, names_p in sets_s.items():
        for q, names_q in sets_t.items():
            n = len(names_p & names_q)
            if n:
                yield n, p, q


def _few(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> Scored:
    """Those with a prefix on one side at most."""
    mine, theirs = ({n: canonical_shape(s) for n, s in side.items()} for side in (source, target))
    for p in ("", *_prefixes(source, _MOST_IN_LARGE)):
        for q in ("", *_prefixes(target, _MOST_IN_LARGE)) if not p else ("",):
            n = _agreeing(theirs, q, mine) if q else _agreeing(mine, p, theirs)
            if n:
                yield n, p, q


def _agreeing(names: Mapping[str, Shape], prefix: str, others: Mapping[str, Shape]) -> int:
    """How many of the names are the other side's without the prefix, with the same shape."""
    if not prefix:
        return sum([others.get(name) == shape for name, shape in names.items()])
    head, cut = f"{prefix}.", len(prefix) + 1
    below = [(name[cut:], shape) for name, shape in names.items() if name.startswith(head)]
    return sum([others.get(name) == shape for name, shape in below])


def _dots(name: str) -> Iterator[int]:
    at = name.find(".")
    for _ in range(4):
        if at < 0:
            return
        yield at
        at = name.find(".", at + 1)


def _prefixes(names: Iterable[str], most: int) -> list[str]:
    """The prefixes of up to four segments with most below them."""
    sizes = Counter(name[:at] for name in names for at in _dots(name))
    return [p for p, n in sizes.most_common(most) if n > 1]


def _relative(names: Mapping[str, Shape]) -> dict[str, set[tuple[str, Shape]]]:
    found: dict[str, set[tuple[str, Shape]]] = {
        "": {(name, canonical_shape(shape)) for name, shape in names.items()}
    }
    for prefix in _prefixes(names, _MOST):
        cut = len(prefix) + 1
        head = prefix + "."
        found[prefix] = {
            (name[cut:], canonical_shape(shape)) for name, shape in names.items() if name.startswith(head)
        }
    return found


def _rivals(scored: list[tuple[int, str, str]], best: tuple[int, str, str], keys: int) -> tuple[str, ...]:
    """Other, disjoint parts that fit as well (EMA, student and teacher; two towers of a model)."""
    n_best, p_best, q_best = best
    if n_best * 2 < keys:
        return ()
    found = []
    for n, p, q in scored:
        apart = p and p_best and not _nested(p, p_best)
        if apart and q == q_best and n * 10 >= n_best * 9:
            found.append(p)
    return tuple(p for p in found if not any(_nested(p, o) and len(o) < len(p) for o in found))


def _nested(p: str, q: str) -> bool:
    return p == q or p.startswith(q + ".") or q.startswith(p + ".")


def relative_name(name: str, prefix: str) -> str:
    """The name below the prefix; names elsewhere are kept apart by a leading ``~``."""
    if not prefix:
        return name
    if name.startswith(prefix + "."):
        return name[len(prefix) + 1 :]
    return "~." + name


def relative_names(names: dict[str, str], prefix: str) -> dict[str, str]:
    """The same dict with names below the prefix."""
    return {relative_name(n, prefix): k for n, k in names.items()} if prefix else names


def strips_of(keys: Iterable[str], base: Base) -> tuple[Strip, ...]:
    """The wrapper segments and the base prefix that the checkpoint's keys carry, counted."""
    keys = list(keys)
    found = [
        Strip(segment, BY_SEGMENT[segment].writer, BY_SEGMENT[segment].anywhere, count)
        for segment, count in wrapper_counts(keys).items()
    ]
    # With a prefix on the model's side as well it is a rename, not a strip.
    if base.source and not base.target:
        count = sum(strip_key(k).startswith(base.source + ".") for k in keys)
        found.append(Strip(base.source, "", False, count))
    return tuple(found)
