"""Ops that a person chose (``--op 'fc.*=slice(0,0,10)'``): checked against the shapes, then taken as said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from ckptdoctor.align.model import Match, Status
from ckptdoctor.align.orient import options
from ckptdoctor.align.units import Leaf
from ckptdoctor.decisions import Decision
from ckptdoctor.errors import DecisionError, PlanError
from ckptdoctor.keys import matches, printable

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State
    from ckptdoctor.ops import Chain


def op_for(state: State, key: str) -> Decision | None:
    """The op decision whose pattern fits this model key."""
    return next((d for d in _decisions(state) if matches(d.value.partition("=")[0], key)), None)


def _decisions(state: State) -> Iterator[Decision]:
    return (d for d in state.decisions if d.kind == "op")


def chosen_match(state: State, key: str, sources: tuple[str, ...], decision: Decision) -> Match:
    """The match that the decision makes. Raises :class:`DecisionError` when ops and shapes do not fit."""
    chain = _chain(decision)
    want = state.target[key].shape
    try:
        made = chain.out_shape([state.source[s].shape for s in sources])
    except PlanError as error:
        raise DecisionError(f"{printable(str(decision))}: for `{printable(key)}`: {error}") from None
    if made != want:
        raise DecisionError(
            f"{printable(str(decision))}: makes {list(made)} of `{printable(' + '.join(sources))}`, "
            f"the model's `{printable(key)}` is {list(want)}"
        )
    status: Status = "unsafe" if chain.effect == "lossy" or chain.partial else "safe"
    return Match(key, status, sources, chain.texts, (f"declared: {decision}",))


def _chain(decision: Decision) -> Chain:
    from ckptdoctor.ops import parse_chain

    try:
        return parse_chain(decision.value.partition("=")[2])
    except PlanError as error:
        raise DecisionError(f"{printable(str(decision))}: {error}") from None


def resized(state: State) -> None:
    """Chosen ops for keys that have one name on both sides and shapes that do not fit: before matching."""
    if not any(True for _ in _decisions(state)):
        return
    for name, key in list(state.target_names.items()):
        mine = state.source_names.get(name)
        if mine is None:
            continue
        decision = op_for(state, key)
        if decision is None or options(Leaf((mine,), state.source[mine].shape), state.target[key].shape):
            continue
        state.matches[key] = chosen_match(state, key, (mine,), decision)
        del state.target_names[name], state.source_names[name]


def relaid(state: State) -> None:
    """Chosen ops for keys whose source the engine found; the layout is what the person says."""
    for decision in _decisions(state):
        pattern = decision.value.partition("=")[0]
        keys = [k for k in state.target.specs if matches(pattern, k)]
        if not keys:
            raise DecisionError(
                f"{printable(str(decision))}: `{printable(pattern)}` matches no key of the model"
            )
        for key in keys:
            if op_for(state, key) is decision and not _settled(state, key):
                state.matches[key] = chosen_match(state, key, _sources(state, key, decision), decision)


def _settled(state: State, key: str) -> bool:
    match = state.matches.get(key)
    return key in state.followers or (match is not None and is_declared(match))


def _sources(state: State, key: str, decision: Decision) -> tuple[str, ...]:
    match = state.matches.get(key)
    found = {match.sources} if match is not None and match.sources else set()
    if match is not None and not found:
        found = {c.sources for c in match.choices}
    if len(found) == 1:
        return found.pop()
    why = "nothing in the checkpoint is matched to it" if not found else "several tensors may be meant"
    raise DecisionError(
        f"{printable(str(decision))}: `{printable(key)}`: {why}; name its source as well: "
        f"--rename 'CHECKPOINT_KEY={printable(key)}'"
    )


def answered(state: State) -> None:
    """Questions about keys that a person has settled are closed."""
    if not state.questions:
        return
    done = {k for k, m in state.matches.items() if is_declared(m)}
    open_ = []
    for question in state.questions:
        left = tuple(t for t in question.targets if t not in done)
        if left or not question.targets:
            open_.append(replace(question, targets=left))
    state.questions = open_


def is_declared(match: Match) -> bool:
    """Whether a person (or the project's settings) said so."""
    return _says_declared(match.evidence)


@lru_cache(maxsize=4096)
def _says_declared(evidence: tuple[str, ...]) -> bool:
    return any(e.startswith("declared:") for e in evidence)
