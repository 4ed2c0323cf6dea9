"""Siblings that exchange their names for no reason that shapes give.

Where `block.norm1` fills the model's `block.norm2`, and something else the model's `block.norm1`, both could
be filled the other way round just as well, and by their own names. Words and places may have spoken for it;
a name that both sides have speaks against it. So it is asked.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

from ckptdoctor.align.checks import take_back
from ckptdoctor.align.model import Choice, Match
from ckptdoctor.align.parts import Path
from ckptdoctor.columns import tally

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

Claims = dict[Path, tuple[Path, Match]]  # by the model's name: the checkpoint's, and the match
_NUMBER = re.compile(r"\d+")


def crossed(state: State) -> None:
    """Take back what fills another module than the one of its own name, if both fit either way."""
    claims = state.claims = _claims(state)
    known = {segment for target in claims for segment in target}
    swaps: dict[Path, Path] = {}
    for target, (source, match) in claims.items():
        other = _own_place(source, target, known) or target
        if other == target or other not in claims:
            continue
        from_, theirs = claims[other]
        alike = state.target[theirs.target].shape == state.target[match.target].shape
        if alike and not _counted_on(source, target, from_, other):
            swaps[target] = other
    if not swaps:
        return
    modules: dict[Path, list[Path]] = defaultdict(list)
    for target in claims:
        modules[target[:-1]].append(target)
    for targets in modules.values():
        if all(t in swaps for t in targets):  # else another tensor of the module shows which is meant
            for target in targets:
                match, rival = claims[target][1], claims[swaps[target]][1]
                why = f"`{match.sources[0]}` has the name of another part of the model, which it fits as well"
                _ask(state, match, rival, why)


def torn(state: State) -> None:
    """Take back what two numbered blocks take from each other's partner, if each could keep its own."""
    claims = state.claims if state.claims is not None else _claims(state)
    state.claims = None
    blocks = ((t, _block(t), _block(s)) for t, (s, _) in claims.items())
    rows = {t: (here, there) for t, here, there in blocks if here and there}
    first: dict[Path, Path] = {}
    if all(first.setdefault(here, there) == there for here, there in rows.values()):
        return  # each block comes from one
    votes: dict[Path, Counter[Path]] = defaultdict(Counter)
    for here, there in rows.values():
        votes[here][there] += 1
    partner = {here: found.most_common(1)[0][0] for here, found in votes.items()}
    astray = {t: (here, there) for t, (here, there) in rows.items() if partner[here] != there}
    taken: dict[tuple[Path, str, tuple[int, ...]], list[Path]] = defaultdict(list)
    for target, (_, there) in astray.items():
        taken[there, target[-1], state.target[claims[target][1].target].shape].append(target)
    for target, (here, there) in astray.items():
        match = claims[target][1]
        for other in taken.get((partner[here], target[-1], state.target[match.target].shape), ()):
            if partner[rows[other][0]] == there:
                own = ".".join(partner[here])
                why = f"the rest of `{'.'.join(here)}` is from `{own}`, which has such a tensor as well"
                _ask(state, match, claims[other][1], why)


def _block(path: Path) -> Path:
    """The path down to its last number; empty where there is none."""
    for last in range(len(path) - 1, -1, -1):
        if path[last].isdecimal():
            return path[: last + 1]
    return ()


def _claims(state: State) -> Claims:
    """Model name -> the checkpoint's name, where one tensor fills one, under another name or not."""
    if not state.target_names:
        return {}
    names = {key: name for name, key in state.source_names.items()}
    users = tally(s for m in state.matches.values() for s in m.sources)
    found = {}
    for name, key in state.target_names.items():
        match = state.matches.get(key)
        if match is None or match.status != "safe" or len(match.sources) != 1:
            continue
        (source,) = match.sources
        if users[source] == 1 and source in names:
            found[tuple(name.split("."))] = (tuple(names[source].split(".")), match)
    return found


def _tail(source: Path, target: Path) -> int:
    """How many segments at the end are the same."""
    n, most = 0, min(len(source), len(target))
    while n < most and source[-n - 1] == target[-n - 1]:
        n += 1
    return n


def _own_place(source: Path, target: Path, known: Collection[str]) -> Path | None:
    """Beside the target, what is called like the source, if the model has a word like that."""
    n = _tail(source, target)
    if not 0 < n < min(len(source), len(target)) or source[-n - 1] not in known:
        return None
    return (*target[: -n - 1], *source[-n - 1 :])


def _counted_on(source: Path, target: Path, rival: Path, other: Path) -> bool:
    """Whether both are of one list whose numbers moved one way: `1 -> 0` and `2 -> 1`.

    Or the rival is a namesake of what it fills. `stem.1.conv` is none of `stem.1.1.conv`, although both end
    with `1.conv`: one is the second of its list, the other the second of what that holds.
    """
    n = _tail(source, target)
    if rival[: -n - 1] != source[: -n - 1] or rival[len(rival) - n :] != source[len(source) - n :]:
        return rival[-n - 1 :] == other[-n - 1 :] and _below_number(rival, n) == _below_number(other, n)
    mine, theirs = source[-n - 1], rival[-n - 1]
    if _NUMBER.sub("#", mine) != _NUMBER.sub("#", theirs):
        return False
    moved = [[int(x) for x in _NUMBER.findall(w)] for w in (target[-n - 1], mine, theirs)]
    if not all(moved):
        return False
    to, at, after = (numbers[-1] for numbers in moved)
    return (to < at) == (at < after)


def _below_number(path: Path, n: int) -> bool:
    """Whether the last but ``n`` segments are a number below another."""
    return len(path) > n + 1 and path[-n - 1].isdecimal() and path[-n - 2].isdecimal()


def _ask(state: State, match: Match, rival: Match, why: str) -> None:
    state.claims = None  # there are fewer from here on
    own, other = Choice(match.sources, match.ops, why), Choice(rival.sources, rival.ops, why)
    take_back(state, [match.target, rival.target], why, {rival.target: [own], match.target: [other]})
