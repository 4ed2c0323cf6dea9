"""From unit pairs to one match per model key, leftovers, ties, decisions and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain as joined
from operator import attrgetter, is_
from typing import TYPE_CHECKING

from ckptdoctor.align import folds, unexpected
from ckptdoctor.align.model import Alignment, Choice, Match, Status, Unused, Verdict
from ckptdoctor.align.names import is_derived, table
from ckptdoctor.align.orient import Chain, Pair, options
from ckptdoctor.align.prefix import strips_of
from ckptdoctor.align.units import Leaf

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State


def followers(state: State) -> dict[str, str]:
    """Tied model keys that follow another one: those that the checkpoint has not under their own name.

    The one whose name the checkpoint has leads, else the first. Names are those below the base prefixes.
    """
    if not state.target.ties:
        return {}
    names = {key: name for name, key in state.target_names.items()}
    held = {key for key, name in names.items() if name in state.source_names}
    found = {}
    for group in state.target.ties:
        leader = next((k for k in group if k in held), group[0])
        found.update({k: leader for k in group if k != leader and k not in held})
    return found


def write_matches(state: State) -> None:
    """Certain pairs and open units become matches."""
    for pair in state.pairs:
        evidence = state.matching.reasons.get(pair.target.index, ())
        if pair.why:
            evidence = (*evidence, pair.why)
        if pair.chosen is not None:
            _write(state, pair, pair.chosen, evidence)
        else:
            _ask_layout(state, pair, evidence)
    _open_units(state)


def _write(state: State, pair: Pair, chain: Chain, evidence: tuple[str, ...]) -> None:
    src, dst = pair.source.leaves[pair.role], pair.target.leaves[pair.role]
    for target, ops in _targets(src, dst, chain):
        key = state.target_names[target]
        sources = tuple([state.source_names[n] for n in src.keys])
        state.matches[key] = Match(key, "safe", sources, ops, evidence)
        fold = src.fold or dst.fold
        if fold and not folds.accepted(state, fold):
            state.folds.setdefault(fold, []).append(key)
            choice = Choice(sources, ops, f"folds {fold}")
            state.matches[key] = Match(key, "undecided", (), (), evidence, (choice,))


def _targets(src: Leaf, dst: Leaf, chain: Chain) -> list[tuple[str, Chain]]:
    """Canonical target names and the whole chain for each (a fused source feeds several)."""
    full = (*src.ops, *chain) if src.ops else chain
    if dst.parts:
        return [(key, (*full, *part)) for key, part in zip(dst.keys, dst.parts, strict=True)]
    if len(dst.keys) == 1:
        return [(dst.keys[0], full)]
    n, start, found = len(dst.keys), 0, []
    for i, (key, size) in enumerate(zip(dst.keys, dst.sizes, strict=True)):
        cut = f"chunk(0,{i},{n})" if len(set(dst.sizes)) == 1 else f"slice(0,{start},{start + size})"
        found.append((key, (*full, cut)))
        start += size
    return found


def _ask_layout(state: State, pair: Pair, evidence: tuple[str, ...]) -> None:
    src, dst = pair.source.leaves[pair.role], pair.target.leaves[pair.role]
    chains = [dict(_targets(src, dst, chain)) for chain in pair.options]
    sources = tuple(state.source_names[n] for n in src.keys)
    for name in dst.keys:
        key = state.target_names[name]
        choices = tuple(Choice(sources, c[name], "the shape allows it") for c in chains)
        state.matches[key] = Match(key, "undecided", (), (), evidence, choices)


def _open_units(state: State) -> None:
    sources = {u.index: u for u in state.sources}
    targets = {u.index: u for u in state.targets}
    for index, candidates in state.matching.open.items():
        for role, dst in targets[index].leaves.items():
            _open_leaf(state, dst, [sources[c].leaves[role] for c in candidates if role in sources[c].leaves])


def _open_leaf(state: State, dst: Leaf, candidates: Sequence[Leaf]) -> None:
    found: dict[str, list[Choice]] = {name: [] for name in dst.keys}
    for src in candidates:
        sources = tuple(state.source_names[n] for n in src.keys)
        for chain in options(src, dst.shape):
            for name, ops in _targets(src, dst, chain):
                found[name].append(Choice(sources, ops, "shape and place in the tree allow it"))
    for name, choices in found.items():
        key = state.target_names[name]
        status: Status = "undecided" if choices else "missing"
        state.matches[key] = Match(key, status, (), (), (), tuple(choices))


def leftovers(state: State) -> None:
    """Derived buffers that the checkpoint has, under the same name or another."""
    open_ = [(n, k) for n, k in state.target_names.items() if k not in state.matches]
    derived = [(n, k) for n, k in open_ if k not in state.followers and is_derived(n)]
    if not derived:
        return
    used = {s for m in state.matches.values() for s in m.sources}
    homes = _homes(state)
    for name, key in derived:
        mine = state.source_names.get(name)
        if mine is None:
            parent, _, leaf = key.rpartition(".")
            mine = f"{homes.get(parent)}.{leaf}"
            mine = mine if mine in state.source else None
        if mine is None:
            _derived_elsewhere(state, name, key)
        elif state.source[mine].shape == state.target[key].shape and mine not in used:
            state.matches[key] = Match(key, "safe", (mine,), (), ("same name",))


def _homes(state: State) -> dict[str, str]:
    """Model module -> the checkpoint's module that fills it, where that is one."""
    found: dict[str, set[str]] = {}
    for match in state.matches.values():
        if match.status == "safe" and len(match.sources) == 1:
            parent, _, leaf = match.target.rpartition(".")
            above, _, mine = match.sources[0].rpartition(".")
            if leaf == mine:
                found.setdefault(parent, set()).add(above)
    return {parent: next(iter(above)) for parent, above in found.items() if len(above) == 1}


def _derived_elsewhere(state: State, name: str, key: str) -> None:
    """A derived buffer that the checkpoint keeps elsewhere (one a layer, say): any copy will do."""
    leaf, shape = name.rpartition(".")[2], state.target[key].shape
    if leaf not in table()["derived"]["alike"]:
        return
    for other, mine in state.source_names.items():
        if other.rpartition(".")[2] == leaf and state.source[mine].shape == shape and shape:
            reason = ("derived buffer: every copy holds the same values",)
            state.matches[key] = Match(key, "safe", (mine,), (), reason)
            return


def fill_ties(state: State) -> None:
    """Tied model keys that found nothing of their own take what their partner takes."""
    lonely = {
        k: next((o for o in group if o in state.matches and o != k), group[0])
        for group in state.target.ties
        for k in group
        if k not in state.matches or state.matches[k].status == "missing"
    }
    for key, leader in lonely.items():
        match = state.matches.get(leader)
        if match is not None:
            evidence = (f"tied to `{leader}`",)
            state.matches[key] = Match(key, match.status, match.sources, match.ops, evidence, match.choices)


def account(state: State) -> None:
    """Two-sided accounting: every key of either side gets a status and a reason."""
    for key in [k for k in state.target.specs if k not in state.matches]:
        derived = is_derived(key) and not _module_open(state, key)
        why = ("the model computes this buffer itself",) if derived else ()
        state.matches[key] = Match(key, "kept" if derived else "missing", evidence=why)
    if len(state.matches) > len(state.target) or not all(map(is_, state.matches, state.target.specs)):
        state.matches = {k: state.matches[k] for k in state.target.specs}
    used = set(joined.from_iterable(map(attrgetter("sources"), state.matches.values())))
    choices = joined.from_iterable(map(attrgetter("choices"), state.matches.values()))
    asked = {source for choice in choices for source in choice.sources}
    lonely = [k for k in state.source.specs if k not in used and k not in state.unused]
    reasons = unexpected.reasons(state, [k for k in lonely if k not in asked], used | asked)
    for key in lonely:
        reason, decided = reasons.get(key, ("a question is open about it", False))
        state.unused[key] = Unused(key, reason, decided, unexpected.equal_to(state, reason))


def _module_open(state: State, key: str) -> bool:
    """Whether this counts the batches of a module that is not filled itself."""
    path, _, leaf = key.rpartition(".")
    mate = state.matches.get(f"{path}.running_mean")
    return leaf == "num_batches_tracked" and (mate is None or mate.status in ("missing", "undecided"))


def ask(state: State) -> None:
    """Questions about what is still open, each with the flag that answers it."""
    if not state.refusal:
        state.questions += folds.questions(state)
        state.questions += unexpected.questions(state)


def result(state: State) -> Alignment:
    """The frozen alignment with its verdict."""
    strips = strips_of(state.source.specs, state.base)
    return Alignment(
        state.matches,
        state.unused,
        strips,
        tuple(state.questions),
        _verdict(state),
        state.refusal,
        tuple(state.warnings),
    )


def _verdict(state: State) -> Verdict:
    if state.refusal:
        return "incompatible"
    open_keys = [m for m in state.matches.values() if m.status in ("undecided", "missing")]
    if open_keys or any(not u.decided for u in state.unused.values()) or state.questions:
        return "undecided"
    same = all(m.sources == (m.target,) and not m.ops for m in state.matches.values())
    return "compatible" if same and not state.unused else "repairable"
