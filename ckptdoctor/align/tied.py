"""Modules of the model that share a tensor, when the checkpoint names it once.

Without the shared tensor a module looks like another one than it is: which of the two names the
checkpoint kept is chance (a sorted header keeps the first), so what is the only one of its shapes then is
no proof of anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ckptdoctor.align.checks import take_back
from ckptdoctor.align.model import Choice, Match
from ckptdoctor.align.names import leaf_role

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State


def exchanged(state: State) -> None:
    """Take back pairs that rest on shapes alone, where two modules differ by a tied tensor only."""
    modules: dict[str, list[str]] = defaultdict(list)
    for key in state.target.specs if state.followers else ():
        modules[key.rpartition(".")[0]].append(key)
    for follower, leader in state.followers.items():
        mine, other = _rest(modules, follower), _rest(modules, leader)
        for role, key in mine.items():
            twin = other.get(role)
            if twin is None or state.target[key].shape != state.target[twin].shape:
                continue
            first, second = state.matches.get(key), state.matches.get(twin)
            if first is not None and second is not None and _unproved(first) and _unproved(second):
                both = {key: _choices(second), twin: _choices(first)}
                why = f"`{leader}` and `{follower}` are one tensor, so either module may be meant"
                take_back(state, [key, twin], why, both)


def _rest(modules: Mapping[str, Sequence[str]], key: str) -> dict[str, str]:
    """The other tensors of the key's module, by role."""
    found = [k for k in modules.get(key.rpartition(".")[0], ()) if k != key]
    return {leaf_role(k.rpartition(".")[2]) or k.rpartition(".")[2]: k for k in sorted(found)}


def _unproved(match: Match) -> bool:
    """Whether nothing that the module itself is called speaks for it; shapes and parents do not count."""
    if match.status != "safe":
        return match.status == "undecided"
    if len(match.sources) != 1:
        return False
    mine, theirs = (k.split(".")[-2:-1] for k in (match.sources[0], match.target))
    named = mine == theirs and not any(word.isdigit() for word in mine)
    return not named and not any(e == "same name" or e.startswith("both are `") for e in match.evidence)


def _choices(match: Match) -> list[Choice]:
    why = "the module that shares a tensor with this one"
    claimed = [Choice(match.sources, match.ops, why)] if match.sources else []
    return [*claimed, *(Choice(c.sources, c.ops, why) for c in match.choices)]
