"""Few patterns that fit exactly some of the keys of a tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from ckptdoctor.keys.folding import fold
from ckptdoctor.keys.grammar import escape
from ckptdoctor.keys.names import natural_key

MIN_LEAVES = 3  # from so many keys on, `**.num_batches_tracked` reads better than their list


def cover(keys: Iterable[str], universe: Collection[str]) -> list[str]:
    """Patterns that, among the keys of ``universe``, fit exactly ``keys``.

    ``**`` for all of them, ``**.num_batches_tracked`` for every key with that last segment,
    ``fc.**`` for whole subtrees; what is left is folded.
    """
    wanted = set(keys)
    if wanted and len(wanted) == len(universe):
        return ["**"]
    leaves = _whole_leaves(wanted, universe)
    patterns = [f"**.{escape(leaf)}" for leaf in leaves]
    rest = {k for k in wanted if k.rpartition(".")[2] not in leaves}
    trees, rest = _whole_subtrees(rest, universe)
    patterns += [f"{f.text}.**" for f in fold(trees)]
    return patterns + [f.text for f in fold(rest)]


def _whole_leaves(wanted: set[str], universe: Collection[str]) -> list[str]:
    have = Counter(k.rpartition(".")[2] for k in wanted)
    candidates = {leaf for leaf, n in have.items() if n >= MIN_LEAVES}
    there = Counter(leaf for k in universe if (leaf := k.rpartition(".")[2]) in candidates)
    return sorted(leaf for leaf in candidates if have[leaf] == there[leaf])


def _whole_subtrees(wanted: set[str], universe: Collection[str]) -> tuple[list[str], set[str]]:
    """The outermost prefixes below which everything is wanted, and the keys below none."""
    missing: set[str] = set()
    size: Counter[str] = Counter()
    for key in universe:
        for prefix in _prefixes(key):
            if key in wanted:
                size[prefix] += 1
            else:
                missing.add(prefix)
    found: list[str] = []
    rest: set[str] = set()
    for key in wanted:
        whole = next((p for p in _prefixes(key) if p not in missing and size[p] > 1 and p != key), None)
        if whole is None:
            rest.add(key)
        else:
            found.append(whole)
    return sorted(set(found), key=natural_key), rest


def _prefixes(key: str) -> Iterable[str]:
    at = key.find(".")
    while at >= 0:
        yield key[:at]
        at = key.find(".", at + 1)
    yield key
