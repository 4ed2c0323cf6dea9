"""Declared facts: a person's decisions enter first, as evidence of the highest rank, and are checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ckptdoctor.align.chosen import chosen_match, op_for
from ckptdoctor.align.model import Match, Unused
from ckptdoctor.align.orient import options
from ckptdoctor.align.units import Leaf
from ckptdoctor.decisions import Decision, fact_of
from ckptdoctor.errors import DecisionError
from ckptdoctor.facts import Fact, agreed
from ckptdoctor.keys import Rule, matches, printable
from ckptdoctor.wrappers import strip_key

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State


def declared(state: State) -> None:
    """Take dropped, chosen, renamed and re-initialised keys out of the game before matching."""
    _drop(state)
    _choose(state)
    _rename(state)
    _reinit(state)
    _known_renames(state)


def of_kind(decisions: Sequence[Decision], kind: str) -> list[str]:
    """Values of all decisions of one kind."""
    return [d.value for d in decisions if d.kind == kind]


def accepted(state: State, *names: str) -> bool:
    """Whether a person accepted one of these risks by name."""
    return bool(set(names) & set(of_kind(state.decisions, "accept")))


def known(state: State) -> dict[str, Fact]:
    """Numbers that shapes do not show; a person's word counts before what the files say.

    Where the checkpoint's side and the model's say different things, nothing is known.
    """
    said = {f.name: f for f in map(fact_of, of_kind(state.decisions, "value"))}
    found = {f.name: f for f in agreed((*state.source.facts, *state.target.facts))}
    return {**found, **said}


def conflicts(state: State, names: Iterable[str]) -> list[str]:
    """One sentence for each of these facts on which the files and the model disagree."""
    found = []
    for name in names:
        said = {f.where: f.value for f in (*state.source.facts, *state.target.facts) if f.name == name}
        if len(set(said.values())) > 1:
            found.append(f"{name} is " + ", ".join(f"{v:g} by {where}" for where, v in said.items()))
    return found


def _select(pattern: str, keys: Iterable[str], what: str) -> list[str]:
    found = [k for k in keys if matches(pattern, k)]
    if not found:
        raise DecisionError(f"`{printable(pattern)}` matches no key of the {what}")
    return found


def _drop(state: State) -> None:
    for pattern in of_kind(state.decisions, "drop"):
        for key in _select(pattern, state.source.specs, "checkpoint"):
            state.unused[key] = Unused(key, f"dropped by decision: drop={pattern}", True)


def _choose(state: State) -> None:
    """``choose=PREFIX``: of several parts that fit equally well, use the one below PREFIX."""
    for prefix in of_kind(state.decisions, "choose"):
        head = prefix + "."
        if not any(k.startswith(head) for k in state.source.specs):
            continue
        for key in state.source.specs:
            if not key.startswith(head):
                state.unused.setdefault(key, Unused(key, f"not under the chosen `{prefix}`", True))


def _rename(state: State) -> None:
    for text in of_kind(state.decisions, "rename"):
        start, _, end = text.partition("=")
        pairs = _renames(start, end, state.source.specs)
        if not pairs:
            raise DecisionError(f"rename={printable(text)}: `{printable(start)}` matches no checkpoint key")
        for mine, theirs in pairs.items():
            _pin(state, text, mine, theirs)


def _known_renames(state: State) -> None:
    """Old names that the model or its project declares (``renamed_from``).

    Unlike a decision they may fit nothing: a newer checkpoint has the new names already.
    """
    if not state.target.renamed:
        return
    mine = {strip_key(k): k for k in state.source.specs if k not in state.unused}
    theirs = {strip_key(k): k for k in state.target.specs if k not in state.matches}
    for new, old in state.target.renamed.items():
        for name, other in _renames(old, new, mine).items():
            key, source = theirs.get(other), mine[name]
            if key is None or key in state.matches or other in mine:
                continue
            chains = options(Leaf((source,), state.source[source].shape), state.target[key].shape)
            if chains:
                why = (f"declared: renamed_from {new} = {old}",)
                state.matches[key] = Match(key, "safe", (source,), chains[0], why)


def _renames(start: str, end: str, keys: Iterable[str]) -> dict[str, str]:
    if start in set(keys):
        return {start: end}
    rule = Rule(start, end)
    found = {k: rule.apply(k) for k in keys}
    return {k: v for k, v in found.items() if v is not None}


def _pin(state: State, text: str, mine: str, theirs: str) -> None:
    if theirs not in state.target:
        raise DecisionError(f"rename={printable(text)}: the model has no key `{printable(theirs)}`")
    if theirs in state.matches:
        raise DecisionError(f"rename={printable(text)}: `{printable(theirs)}` is filled by two renames")
    decision = op_for(state, theirs)
    if decision is not None:
        state.matches[theirs] = chosen_match(state, theirs, (mine,), decision)
        return
    have, want = state.source[mine].shape, state.target[theirs].shape
    chains = options(Leaf((mine,), have), want)
    if not chains:
        raise DecisionError(
            f"rename={printable(text)}: `{printable(mine)}` has shape {list(have)}, "
            f"the model's `{printable(theirs)}` {list(want)}; say how to make it fit: "
            f"--op '{printable(theirs)}=OPS'"
        )
    state.matches[theirs] = Match(theirs, "safe", (mine,), chains[0], (f"declared: rename={text}",))


def _reinit(state: State) -> None:
    for pattern in of_kind(state.decisions, "reinit"):
        for key in _select(pattern, state.target.specs, "model"):
            if key in state.matches:
                raise DecisionError(f"reinit={printable(pattern)}: `{printable(key)}` is also renamed to")
            state.matches[key] = Match(key, "kept", evidence=(f"decision: reinit={pattern}",))
    kept = {strip_key(k) for k, m in state.matches.items() if m.status == "kept"}
    for key in state.source.specs if kept else ():
        if strip_key(key) in kept and key not in state.unused:
            why = "the model key of this name keeps its initial value by decision"
            state.unused[key] = Unused(key, why, True)


def open_source(state: State) -> Mapping[str, object]:
    """Checkpoint keys that the decisions leave in the game."""
    used = {s for m in state.matches.values() for s in m.sources}
    if not used and not state.unused:
        return state.source.specs
    return {k: s for k, s in state.source.specs.items() if k not in state.unused and k not in used}


def open_target(state: State) -> Iterable[str]:
    """Model keys that the decisions leave open."""
    if not state.matches:
        return state.target.specs
    return [k for k in state.target.specs if k not in state.matches]
