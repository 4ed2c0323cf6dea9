"""Buffers that a module computes or counts for itself: they go with the module's own tensors, or nowhere."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ckptdoctor.align.chosen import is_declared
from ckptdoctor.align.model import Match
from ckptdoctor.align.names import is_derived, table

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State


def derived(state: State) -> None:
    """A derived buffer is taken from the module that fills its own; else the model computes it.

    That a name and a shape agree proves nothing for them, where blocks are renumbered.
    """
    if not state.pairs:  # every name is the same on both sides
        return
    keys = [
        k for n, k in state.target_names.items() if is_derived(n) and _own(n) and k not in state.followers
    ]
    rows = [m for m in state.matches.values() if m.status == "safe" and len(m.sources) == 1]
    homes = _homes(rows, {k.rpartition(".")[0] for k in keys})
    for key in keys:
        match, (module, _, leaf) = state.matches.get(key), key.rpartition(".")
        found = homes.get(module, set())
        if not found or (match is not None and (match.status != "safe" or is_declared(match))):
            continue
        if match is not None and match.sources[0].rpartition(".")[0] in found:
            continue
        mine = f"{min(found)}.{leaf}"
        if len(found) == 1 and mine in state.source and state.source[mine].shape == state.target[key].shape:
            state.matches[key] = Match(key, "safe", (mine,), (), ("goes with its module",))
        else:
            state.matches.pop(key, None)


def _own(name: str) -> bool:
    """Whether each module has its own: neither one for all, nor counted with the statistics."""
    leaf = name.rpartition(".")[2]
    return leaf not in table()["derived"]["alike"] and leaf != "num_batches_tracked"


def _homes(rows: list[Match], modules: set[str]) -> dict[str, set[str]]:
    """Module of the model -> those of the checkpoint that fill what is in and below it."""
    found: dict[str, set[str]] = defaultdict(set)
    for match in rows if modules else ():
        if is_derived(match.target):
            continue
        segments = match.target.split(".")
        for depth in range(1, len(segments)):
            module, rest = ".".join(segments[:depth]), "." + ".".join(segments[depth:])
            if module in modules and match.sources[0].endswith(rest):
                found[module].add(match.sources[0].removesuffix(rest))
    return found
