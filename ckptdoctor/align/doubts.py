"""Claims beside an open question: those that one more answer to it would move are taken back.

A claim is safe only if every reading of the file that is as good agrees on it. Where nothing is open there
is one reading; where a tensor of either side found no place, it may belong where another one was put. What
has the model's own name, in lists that begin alike, cannot be moved by that. Anything else can: by an open
tensor of its shape beside it, or, where a list was renumbered, by anything open in the list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import TYPE_CHECKING

from ckptdoctor.align.checks import take_back
from ckptdoctor.align.chosen import is_declared
from ckptdoctor.align.model import Choice, Match, Unused
from ckptdoctor.align.names import is_derived, name_of, unnumbered, words
from ckptdoctor.align.parts import COUNTER, Part, Path, path_of
from ckptdoctor.align.unexpected import TIED_COPY
from ckptdoctor.align.units import Shape, canonical_shape
from ckptdoctor.columns import tally

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

WHY = "another tensor of this shape found no place, and nothing shows that it does not belong here"
NAMED = "another tensor has the very name, and found no place"
LISTED = "these blocks are renumbered, and not all of them found their place"
_LAYOUTS = ("packed", "rotary", "patch", "gateup", "fold")  # the pair is certain, its layout is asked
LONE = "only the shape speaks for it: the checkpoint may have lost this tensor and hold a stranger"
OPPOSED = "their names say two different things"
RENAMED = 0.25  # share of the model's tensors from which it is another naming, not single strangers
STEM = 4  # letters
SPOKEN = ("same name", "names agree", "both are", "same values", "tied to", "derived", "recipe")
MOST = 50  # choices of one key
_PACKED = (2, 3)  # how many parts a fused tensor may have


@dataclass
class Claim:
    """A pair that names alone do not prove, with the point where the two names part."""

    key: str
    name: Path
    other: Path
    at: int
    shape: Shape

    @property
    def listed(self) -> bool:
        """Whether the names part at a number of a list."""
        return self.name[self.at].isdecimal() and self.other[self.at].isdecimal()

    @property
    def own(self) -> bool:
        """Whether the names part at the tensor's own, a parameter's of one and the same module."""
        return self.at == len(self.name) - 1 == len(self.other) - 1

    @property
    def parts(self) -> tuple[Path, Path]:
        """What differs of the two names, the checkpoint's first; of modules without the tensors' own."""
        end = None if self.own else -1
        return self.other[self.at : end], self.name[self.at : end]

    @property
    def places(self) -> tuple[Path, Path]:
        """Up to where the names agree, on both sides."""
        return self.name[: self.at], self.other[: self.at]


Claims = dict[str, Claim]  # by model key


def doubt(state: State) -> None:
    """Take back what the open tensors could change; again until nothing more moves."""
    target = Part(state.target_names, state.target, state.targets)
    source = Part(state.source_names, state.source, state.sources)
    _find_open(state, target, source)
    if state.refusal:
        return
    inferred = _inferred(state, target, source)
    if not (target.open or target.hidden or source.open):
        inferred = islice(inferred, int(_few(state)) + 1)  # more than a few: all are as good as proved
    claims = {c.key: c for c in inferred}
    _lone(state, claims, target, source)
    if not (target.open or target.hidden or source.open):
        return
    apart = _regrouped(claims.values(), target, source)
    while moved := [(c, why) for c in claims.values() if (why := _movable(c, target, source, apart))]:
        for claim, why in moved:
            _withdraw(state, claim, claims, target, source, why)
    beside = _outside(state, target, source)
    _counters(state)
    _followers(state)
    state.unused = {
        k: u for k, u in state.unused.items() if (u.decided and not _orphan(state, u.reason)) or k in beside
    }


def _orphan(state: State, reason: str) -> bool:
    """Whether this was the copy of a tied tensor that has no sure source any more."""
    leader = state.matches.get(reason.removeprefix(TIED_COPY).strip("`"))
    return reason.startswith(TIED_COPY) and (leader is None or leader.status != "safe")


def _find_open(state: State, target: Part, source: Part) -> None:
    """Model keys without a sure source, and checkpoint keys without a sure place."""
    settled = {k for q in state.questions if q.kind in _LAYOUTS for k in q.targets}
    settled |= {k for keys in state.folds.values() for k in keys}
    settled |= {state.target_names[n] for p in state.pairs if p.chosen is None for n in p.target.whole}
    for name, key in state.target_names.items() if state.followers else ():
        if key in state.followers:
            target.hidden.add(path_of(name))
    used: set[str] = set()
    for name, key in state.target_names.items():
        match = state.matches[key]
        if match.status in ("safe", "unsafe", "kept") or key in settled:
            used.update(match.sources)
            used.update(s for c in match.choices for s in c.sources)
        elif not is_derived(name):
            target.open.add(path_of(name))
    for name, key in state.source_names.items():
        unused = state.unused.get(key)
        if key not in used and not is_derived(name) and (unused is None or not unused.decided):
            source.open.add(path_of(name))


def _outside(state: State, target: Part, source: Part) -> set[str]:
    """What was left out (beside the part that holds the model, a copy) is not while it could fill a gap."""
    found = set()
    asked = {s.rpartition(".")[0] for m in state.matches.values() for c in m.choices for s in c.sources}
    for name, key in state.source_names.items():
        unused, path = state.unused.get(key), path_of(name)
        if unused is None or not unused.reason.startswith(("outside ", TIED_COPY)):
            continue
        shape, sibling = source.shapes[path], key.rpartition(".")[0] in asked
        fits = (
            _alike(target.shapes[x], shape) and not target.apart(x, source, path)
            for x in target.open.kinds(())
        )
        if sibling or any(fits):
            state.unused[key] = Unused(key, "nothing in the model takes it", False)
            found.add(key)
    return found


def _inferred(state: State, target: Part, source: Part) -> Iterator[Claim]:
    """Claims whose names do not say it by themselves."""
    names = {key: name for name, key in state.source_names.items()}
    bare = {k for u in (*state.sources, *state.targets) if u.bare for k in u.whole}
    for name, key in state.target_names.items():
        match = state.matches[key]
        if match.status != "safe" or is_declared(match) or not set(match.sources) <= names.keys():
            continue
        if match.evidence and match.evidence[0].startswith("tied to `"):
            continue  # goes with its leader
        path = path_of(name)
        for other in (path_of(names[s]) for s in match.sources):
            at = _parting(path, other, target, source)
            if at is None and name in bare and _other_word(path[-1], other[-1]):
                at = len(path) - 1
            if at is not None:
                yield Claim(key, path, other, at, state.target[key].shape)
                break


def _withdraw(state: State, claim: Claim, claims: Claims, target: Part, source: Part, why: str) -> None:
    """Put the claim as a question; what it was about is open from then on."""
    if claims.pop(claim.key, None) is not None:
        target.open.add(claim.name)
        source.open.add(claim.other)
        take_back(state, [claim.key], why)


def _lone(state: State, claims: Claims, target: Part, source: Part) -> None:
    """A new name for a single tensor, which the name does not say: a lost one and a stranger look the same.

    A rename of a module shows in all its tensors, one of a whole network in many modules; and what stands
    among others of the model's tensors is no stranger.
    """
    if not claims or len(claims) > _few(state):
        return
    used = (path_of(n) for n, k in state.source_names.items() if k not in state.unused)
    held = tally(p[:depth] for p in used for depth in range(len(p) + 1))
    repeated = tally((unnumbered(c.name), unnumbered(c.other)) for c in claims.values())
    for claim in list(claims.values()):
        several = repeated[unnumbered(claim.name), unnumbered(claim.other)] > 1
        strange = _opposed(claim) or (not several and _other_purpose(claim))
        if strange and prod(claim.shape) == prod(source.shapes[claim.other]):  # `q` is a part of `qkv`
            _withdraw(state, claim, claims, target, source, OPPOSED)
            continue
        node = claim.other[: claim.at + 1]
        spoken = [e for e in state.matches[claim.key].evidence if e.startswith(SPOKEN)]
        said = any(e != "names agree" or not claim.own for e in spoken)  # they may agree in the module's
        if said or several or _related(claim) or held[node] > 1:
            continue
        _withdraw(state, claim, claims, target, source, LONE)


def _few(state: State) -> float:
    return max(2, len(state.matches) * RENAMED)


def _opposed(claim: Claim) -> bool:
    """Whether one name says what excludes the other: a student is no teacher."""
    mine, theirs = (name_of(".".join(part)).form.values for part in claim.parts)
    return any(theirs.get(group, value) != value for group, value in mine.items())


def _other_purpose(claim: Claim) -> bool:
    """Whether both layers are one kind of thing, each for something: a head for the age, or the income."""
    mine, theirs = (
        {t for c in name_of(path[claim.at]).concepts for t in c if isinstance(t, str)}
        for path in (claim.other, claim.name)
    )
    more, own = mine - theirs, theirs - mine
    same = any(_same_word(a, b) for a in more for b in own)
    layers = claim.at == len(claim.name) - 2 == len(claim.other) - 2
    return layers and bool(mine & theirs and more and own) and not same


def _related(claim: Claim) -> bool:
    """Whether what differs of the two names has a word in common, or the beginning of one.

    Of a tensor's own name one has to say all that the other does: `pos_token` is no `cls_token`.
    """
    mine, theirs = (
        {t for segment in part for t in words(segment) if isinstance(t, str)} for part in claim.parts
    )
    few, many = sorted((mine, theirs), key=len)
    found = [any(_same_word(a, b) for b in many) for a in few]
    return bool(found) and all(found) if claim.own else any(found)


def _same_word(a: str, b: str) -> bool:
    return a == b or (min(len(a), len(b)) >= STEM and a[:STEM] == b[:STEM])


def _parting(name: Path, other: Path, target: Part, source: Part) -> int | None:
    """Where two names part; None when they mean the same. The last segment is the tensor's own."""
    for i in range(max(len(name), len(other)) - 1):
        if i >= len(name) - 1 or i >= len(other) - 1:
            return min(len(name), len(other)) - 1
        a, b = name[i], other[i]
        if a != b and name_of(a).concepts != name_of(b).concepts:
            return i
        if a.isdecimal() != b.isdecimal():
            return i  # `0` and `a` count alike, but may begin apart
        if a.isdecimal() and target.starts[name[:i]] != source.starts[other[:i]]:
            return i
    return None


def _other_word(name: str, other: str) -> bool:
    """Whether two parameters of one module are called differently."""
    return name != other and name_of(name).concepts != name_of(other).concepts


def _movable(claim: Claim, target: Part, source: Part, apart: Collection[tuple[Path, Path]]) -> str:
    """Why the claim may be wrong, or ``""``. ``apart``: lists that count other things on the two sides."""
    place, other_place = claim.places
    counted = claim.listed and claim.places not in apart
    if (
        counted
        and not (target.whole(place) and source.closed(other_place))
        and not _in_step(claim, target, source)
    ):
        return LISTED
    if claim.other in target.open or claim.name in source.open:
        return NAMED
    if _closed(claim, target, source):
        return ""
    if _rivalled(claim, claim.name, place, target, claim.other, source):
        return WHY
    return WHY if _rivalled(claim, claim.other, other_place, source, claim.name, target) else ""


def _rivalled(claim: Claim, own: Path, place: Path, part: Part, partner: Path, other: Part) -> bool:
    """Whether an open tensor of ``part`` beside the claim's own could be the partner's."""
    return any(
        _alike(part.shapes[x], claim.shape) and not part.apart(x, other, partner)
        for x in part.open.kinds(place, own)
    )


def _regrouped(claims: Iterable[Claim], target: Part, source: Part) -> set[tuple[Path, Path]]:
    """Lists of unlike lengths whose numbers do not map one to one: stages here, single blocks there."""
    maps: dict[tuple[Path, Path], set[tuple[str, str]]] = defaultdict(set)
    for c in claims:
        if c.listed:
            maps[c.places].add((c.name[c.at], c.other[c.at]))
    return {
        (place, other)
        for (place, other), rows in maps.items()
        if len(target.lists[place]) != len(source.lists[other])
        and not len(rows) == len({a for a, _ in rows}) == len({b for _, b in rows})
    }


def _in_step(claim: Claim, target: Part, source: Part) -> bool:
    """Whether the two lists hold as much, number by number, and the claim keeps their order."""
    mine, held = source.steps(claim.other[: claim.at])
    theirs, wanted = target.steps(claim.name[: claim.at])
    return mine[int(claim.other[claim.at])] == theirs[int(claim.name[claim.at])] and held == wanted


def _closed(claim: Claim, target: Part, source: Part) -> bool:
    """Whether the module around is filled by one that is used up: no stranger belongs between."""
    mine, theirs = source.scope(claim.other), target.scope(claim.name)
    return bool(mine and theirs) and source.closed(mine) and target.closed(theirs)


def _alike(a: Shape, b: Shape) -> bool:
    """Whether one could stand for the other, turned or as a part of it."""
    if canonical_shape(a) == canonical_shape(b):
        return (len(a) < 2) == (len(b) < 2)
    return len(a) == len(b) > 0 and any(
        x[0] == n * y[0] and x[1:] == y[1:] for x, y in ((a, b), (b, a)) for n in _PACKED
    )


def _counters(state: State) -> None:
    """A batch counter goes with the statistics of its module, and is as open as they are."""
    rows = [
        (k, m, state.matches[means])
        for k, m in state.matches.items()
        if k.endswith(f".{COUNTER}") and (means := f"{k.rpartition('.')[0]}.running_mean") in state.matches
    ]
    taken = {s.rpartition(".")[0] for _, _, mate in rows if mate.status == "safe" for s in mate.sources}
    free = [k for k in state.source.specs if k.endswith(f".{COUNTER}") and k.rpartition(".")[0] not in taken]
    for key, match, mate in rows:
        if match.status == "kept" or is_declared(match):
            continue
        if mate.status == "safe":
            own = f"{mate.sources[0].rpartition('.')[0]}.{COUNTER}"
            if own in state.source.specs:
                state.matches[key] = match._replace(status="safe", sources=(own,), ops=(), choices=())
            else:
                del state.matches[key]  # no file need have it
        elif free:
            why = ("its module is not settled",)
            near = [f"{s.rpartition('.')[0]}.{COUNTER}" for c in mate.choices for s in c.sources]
            some = list(dict.fromkeys([*(k for k in near if k in state.source.specs), *free]))[:MOST]
            choices = tuple(Choice((k,), (), "a batch counter of a module that is open") for k in some)
            state.matches[key] = Match(key, "undecided", (), (), why, choices)


def _followers(state: State) -> None:
    """Tied keys go with the one that they follow."""
    leaders = {f"tied to `{k}`": m for k, m in state.matches.items() if m.status != "safe"}
    for key, match in state.matches.items():
        leader = leaders.get(match.evidence[0]) if match.evidence and match.status == "safe" else None
        if leader is not None:
            state.matches[key] = Match(
                key, leader.status, leader.sources, leader.ops, match.evidence, leader.choices
            )
