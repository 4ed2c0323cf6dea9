"""Plain renames of a plan as few rules on the beginnings of names, proved on every name of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Names:
    """``prefixes``: beginnings of names, with their last dot, and what takes their place; the first that fits
    counts. ``whole``: single names, which come before all prefixes.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    whole: Mapping[str, str] = field(default_factory=dict)

    def rename(self, name: str) -> str:
        """What generated programs do."""
        if name in self.whole:
            return self.whole[name]
        for old, new in self.prefixes:
            if name.startswith(old):
                return new + name[len(old) :]
        return name


def find_names(moves: Mapping[str, str]) -> Names:
    """Rules that take every name of ``moves`` to its new one, names that stay included."""
    candidates: dict[str, str] = {}
    whole: dict[str, str] = {}
    for old, new in moves.items():
        if old == new:
            continue
        a, b = _beginnings(old, new)
        if a is None or b is None or candidates.setdefault(a, b) != b:
            whole[old] = new
    prefixes = tuple((a, b) for a, b in candidates.items() if _holds(a, b, moves))
    names = Names(prefixes, whole)
    # Whatever the rules do not do right is named by itself.
    wrong = {old: new for old, new in moves.items() if names.rename(old) != new}
    names = Names(prefixes, {**whole, **wrong})
    assert all(names.rename(old) == new for old, new in moves.items())
    return names


def _beginnings(old: str, new: str) -> tuple[str | None, str | None]:
    """The two names without the segments that they end with alike: ``layer1.``, ``stages.0.``."""
    a, b = old.split("."), new.split(".")
    common = 0
    while common < min(len(a), len(b)) and a[-1 - common] == b[-1 - common]:
        common += 1
    if not common:
        return None, None
    first, second = a[: len(a) - common], b[: len(b) - common]
    return "".join(f"{s}." for s in first), "".join(f"{s}." for s in second)


def _holds(old: str, new: str, moves: Mapping[str, str]) -> bool:
    return all(target == new + name[len(old) :] for name, target in moves.items() if name.startswith(old))
