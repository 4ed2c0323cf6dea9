"""Another depth, variant or architecture: what the facts say, and no repair tensor by tensor."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from ckptdoctor.align.checks import refuse, take_back
from ckptdoctor.align.names import table
from ckptdoctor.align.units import Unit

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

LITTLE = 0.5  # share of the tensors of either side below which it is another architecture
PART = 0.75  # the same where hardly a name is the same
MIXED = 0.25  # tensors of one name and another shape, as a share of those that match
WIDE = 0.1  # share of units that may disagree before it is another model


def families(state: State) -> None:
    """Some members of a numbered family match while others find no partner: depth or insertion."""
    targets = {u.index: u for u in state.targets}
    sources = {u.index: u for u in state.sources}
    for s, _, t, _ in state.matching.uneven:
        mine, theirs = sources.get(s), targets.get(t)
        if mine is None or theirs is None:  # taken apart since, tensor by tensor
            continue
        here, there = _blocks(state.sources, mine), _blocks(state.targets, theirs)
        if here != there:
            _refuse_depth(state, mine, here, there)
            return
    matched_t = [targets[t] for t in state.matching.certain]
    matched_s = [sources[s] for s in state.matching.certain.values()]
    lonely_t = [u for u in state.targets if u.index not in state.matching.certain]
    lonely_s = _lonely(state.sources, matched_s)
    if not (lonely_t or lonely_s):
        return
    deep_s = _split_families(lonely_s, matched_s)
    deep_t = _split_families(lonely_t, matched_t)
    for deep, matched, other in ((deep_s, matched_s, matched_t), (deep_t, matched_t, matched_s)):
        if deep and _whole_blocks(deep) and not _paired(state, deep):
            if deep is deep_t and not _at_the_end(deep, matched):
                continue
            lonely = next(u for u in deep if _block(u))
            twin = _twin(state, lonely, matched, other)
            if deep is deep_s:
                here, there = _blocks(state.sources, lonely), _blocks(state.targets, twin)
            else:
                here, there = _blocks(state.sources, twin), _blocks(state.targets, lonely)
            if here != there:
                _refuse_depth(state, lonely, here, there)
                return
    shared = {_family(u) for u in deep_t}
    partner = {s: t for t, s in state.matching.certain.items()}
    suspects = {u.index for u in matched_t if _family(u) in shared}
    shared_s = {_family(u) for u in deep_s}
    suspects |= {partner[u.index] for u in matched_s if _family(u) in shared_s}
    keys = [state.target_names[n] for i in suspects for leaf in targets[i].leaves.values() for n in leaf.keys]
    if keys:
        take_back(state, keys, "some of this numbered family have no partner, so any of them may be meant")


def _blocks(units: list[Unit], unit: Unit) -> int:
    """How many blocks the list has to which the unit belongs."""
    if not unit.name.places:
        return 0
    i = unit.name.places[0]
    alike = (u.name for u in units if u.name.flat[:i] == unit.name.flat[:i])
    return len({name.flat[i] for name in alike if i in name.places})


def _lonely(units: list[Unit], matched: list[Unit]) -> list[Unit]:
    taken = {u.index for u in matched}
    return [u for u in units if u.index not in taken]


def _family(unit: Unit) -> tuple[str, object]:
    return unit.name.skeleton, unit.exact


def _split_families(lonely: list[Unit], matched: list[Unit]) -> list[Unit]:
    known = {_family(u) for u in matched if "#" in u.name.skeleton}
    return [u for u in lonely if _family(u) in known]


def _block(unit: Unit) -> str:
    """The path up to the last number that is followed by more."""
    segments = unit.path.split(".")
    for i in range(len(segments) - 2, -1, -1):
        if any(c.isdigit() for c in segments[i]):
            return ".".join(segments[: i + 1])
    return ""


def _whole_blocks(units: list[Unit]) -> bool:
    counts = Counter(_block(u) for u in units)
    return any(n > 1 for block, n in counts.items() if block)


def _paired(state: State, units: list[Unit]) -> bool:
    return all(any(u.index in c for c in state.matching.open.values()) for u in units)


def _at_the_end(lonely: list[Unit], matched: list[Unit]) -> bool:
    families = {_family(u) for u in lonely}
    last = max((u.name.numbers for u in matched if _family(u) in families), default=())
    return all(u.name.numbers > last for u in lonely)


def _twin(state: State, lonely: Unit, matched: list[Unit], other: list[Unit]) -> Unit:
    """On the other side, the partner of a matched unit of the same family."""
    position = next(i for i, u in enumerate(matched) if _family(u) == _family(lonely))
    return other[position]


def _refuse_depth(state: State, unit: Unit, here: int, there: int) -> None:
    refuse(
        state,
        f"the checkpoint has {here} blocks where the model has {there}, those like `{_block(unit)}`: "
        "another depth of the same architecture",
    )


def variant(state: State) -> None:
    """Too many units of one name disagree in shape or in what they hold: another model."""
    if state.refusal:
        return
    matched = {
        n
        for u in state.targets
        if u.index in state.matching.certain
        for leaf in u.leaves.values()
        for n in leaf.keys
    }
    wrong_shape, ratios = _disagreeing(state, matched)
    partial = _partial(state)
    units = max(len(state.targets), 1)
    if len(wrong_shape) > max(3, min(WIDE * units, MIXED * len(matched))):
        refuse(state, _ratio_words(ratios, len(wrong_shape)))
    elif len(partial) > max(2, WIDE * units):
        refuse(state, _partial_words(state, partial))


def little_fits(state: State) -> None:
    """Too small a part of the model is filled, by too small a part of the checkpoint: a chance hit."""
    m = state.matching
    targets = {u.index: u for u in state.targets}
    sources = {u.index: u for u in state.sources}
    used_s = set(m.certain.values()) | {cs[0] for cs in m.open.values()}
    used_t = set(m.certain) | set(m.open)
    names = {u.path for u in state.sources} & {u.path for u in state.targets}
    used_s |= {u.index for u in state.sources if u.path in names}  # a head with other rows fits by name
    used_t |= {u.index for u in state.targets if u.path in names}
    if len(used_s) == len(sources) or len(used_t) == len(targets):
        return  # one side fits as a whole
    mine = sum(sources[i].size for i in used_s), sum(u.size for u in state.sources)
    theirs = sum(targets[i].size for i in used_t), sum(u.size for u in state.targets)
    if state.refusal or state.crossed or not mine[1] or not theirs[1]:
        return  # a recipe that explains both trees knows the architecture
    named = state.base.exact >= LITTLE * min(mine[1], theirs[1])
    least = LITTLE if named else PART
    if mine[0] < least * mine[1] and theirs[0] < least * theirs[1]:
        refuse(
            state,
            f"little fits: {mine[0]} of the checkpoint's {mine[1]} tensors have the shapes of {theirs[0]} of "
            f"the model's {theirs[1]}: another architecture",
        )


def _disagreeing(state: State, matched: set[str]) -> tuple[list[str], Counter[str]]:
    names: list[str] = []
    ratios: Counter[str] = Counter()
    for name, key in state.target_names.items():
        mine = state.source_names.get(name)
        if name in matched or mine is None:
            continue
        have, want = state.source[mine].shape, state.target[key].shape
        if have != want:
            names.append(name)
            if len(have) == len(want):
                ratios.update({_ratio(h, w) for h, w in zip(have, want, strict=True) if h != w})
    return names, ratios


def _ratio(have: int, want: int) -> str:
    return f"{have / want:.4g}" if want else "0"


def _ratio_words(ratios: Counter[str], count: int) -> str:
    if ratios:
        ratio, n = ratios.most_common(1)[0]
        if n * 4 >= count * 3:
            shard = " (a tensor-parallel shard, or a smaller variant)" if float(ratio) < 1 else ""
            return (
                f"{count} tensors of the same name have another shape, with the constant ratio {ratio} "
                f"between checkpoint and model{shard}: another variant, not a repairable difference"
            )
    return f"{count} tensors of the same name have another shape: another architecture or variant"


def _partial(state: State) -> list[tuple[str, frozenset[str], frozenset[str]]]:
    """Modules of one name on both sides whose tensors differ in kind."""
    if all(u.index in state.matching.certain for u in state.targets):
        return []
    theirs = {u.path: u for u in state.targets if not u.bare}
    taken_s = set(state.matching.certain.values())
    found = []
    for unit in state.sources:
        other = theirs.get(unit.path)
        if other is None or unit.bare or unit.index in taken_s or other.index in state.matching.certain:
            continue
        mine, want = frozenset(unit.leaves), frozenset(other.leaves)
        if mine != want:
            found.append((unit.path, mine - want, want - mine))
    below = _below(state)
    mine_too = {u.path for u in state.sources if not u.bare}
    for path, unit in theirs.items():
        if unit.index not in state.matching.certain and path in below and path not in mine_too:
            found.append((path, frozenset(below[path]), frozenset(unit.leaves)))
    return found


def _below(state: State) -> dict[str, set[str]]:
    """Module path -> bare tensors of the checkpoint directly below it."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in state.source_names:
        path, _, leaf = name.rpartition(".")
        found[path].add(leaf)
    return found


def _partial_words(state: State, partial: list[tuple[str, frozenset[str], frozenset[str]]]) -> str:
    path, extra, missing = partial[0]
    has = ", ".join(sorted(extra)) or "less"
    wants = ", ".join(sorted(missing)) or "less"
    words = (
        f"{len(partial)} modules hold other tensors: `{path}` has {has} in the checkpoint "
        f"and {wants} in the model"
    )
    if extra & set(table()["layouts"]["quantised"]):
        return words + ": a quantised checkpoint; dequantise it with the tool that wrote it"
    if any("bias" in e for _, e, _ in partial) and any("running_mean" in u.leaves for u in state.targets):
        return words + ": its normalisation seems to be folded into the convolutions; get the training file"
    return words
