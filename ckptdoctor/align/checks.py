"""Checks over the whole alignment. They only ever take claims back or put them as questions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from ckptdoctor.align import facts
from ckptdoctor.align.chosen import is_declared
from ckptdoctor.align.model import Choice, Match, Question
from ckptdoctor.align.names import Token, concepts_of, name_of, table
from ckptdoctor.align.units import Unit
from ckptdoctor.wrappers import strip_key

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State


Head = tuple[Token, ...]  # what stands before the number of a list


_LEAVES = frozenset({"weight", "bias", "running_mean", "running_var"})


def take_back(
    state: State, keys: Iterable[str], why: str, more: dict[str, list[Choice]] | None = None
) -> None:
    """Turn claims into open questions; what was claimed stays the first choice."""
    for key in keys:
        match = state.matches.get(key)
        if match is not None and (match.status == "kept" or is_declared(match)):
            continue
        extra = (more or {}).get(key, [])
        choices: list[Choice] = list(match.choices) if match is not None else []
        if match is not None and match.sources:
            choices.insert(0, Choice(match.sources, match.ops, "; ".join(match.evidence)))
        choices += [c for c in extra if c not in choices]
        if choices:
            state.matches[key] = Match(key, "undecided", (), (), (why,), tuple(choices))


def duplicates(state: State) -> None:
    """Several checkpoint keys fall together once wrapper names are off."""
    if not state.duplicates:
        return
    back = {key: name for name, key in state.target_names.items()}
    for key, match in list(state.matches.items()):
        rivals = {k for s in match.sources for k in state.duplicates.get(strip_key(s), ())}
        if len(rivals) > 1 and not _same_memory(state, rivals):
            others = [Choice((k,), match.ops, "the same name under a wrapper") for k in sorted(rivals)]
            take_back(state, [key], "two checkpoint keys have this name", {key: others})
    clash = [k for ks in state.duplicates.values() if not _same_memory(state, ks) for k in ks]
    if clash:
        targets = tuple(k for k, m in state.matches.items() if m.status == "undecided" and k in back)
        state.questions.append(
            Question(
                "duplicate",
                f"{len(clash)} checkpoint keys are there twice, with and without a wrapper's prefix",
                targets,
                tuple(clash),
                ("their values may differ, and only one of each can be loaded",),
                (("--drop 'module.**'", "use the keys without the prefix"),),
            )
        )


def _same_memory(state: State, keys: Iterable[str]) -> bool:
    specs = [state.source[k] for k in keys]
    return all(s.storage and (s.storage, s.offset) == (specs[0].storage, specs[0].offset) for s in specs)


def places(state: State) -> None:
    """The checkpoint fits into several parts of the model equally well."""
    base = state.base
    if not base.places:
        return
    options = [base.target, *base.places]
    inside = [k for k in state.matches if any(strip_key(k).startswith(f"{o}.") for o in options)]
    take_back(state, inside, "the checkpoint fits several parts of the model equally well")
    state.questions.append(
        Question(
            "place",
            f"the checkpoint fits {len(options)} parts of the model equally well: "
            + ", ".join(f"`{o}`" for o in options),
            tuple(inside),
            (),
            (),
            tuple((f"--rename '**={o}.**'", f"load it into `{o}`") for o in options),
        )
    )


def backwards(state: State) -> None:
    """Numbered lists that count the other way round on the two sides.

    Blocks of unequal shapes show it; those of equal shapes were paired by rank and are taken back.
    """
    sources = {u.index: u for u in state.sources}
    targets = {u.index: u for u in state.targets}
    lists: dict[tuple[Head, Head], dict[int, tuple[int, list[tuple[Unit, Unit]]]]] = defaultdict(dict)
    for t, s in state.matching.certain.items():
        u, v = sources[s], targets[t]
        i, j = _first_number(u), _first_number(v)
        if i is None or j is None:
            continue
        here = lists[u.name.flat[:i], v.name.flat[:j]]
        number = u.name.flat[i]
        assert isinstance(number, int)
        other = v.name.flat[j]
        assert isinstance(other, int)
        if number in here and here[number][0] != other:
            here[-1] = (0, [])  # several levels in one: not a list of blocks
            continue
        here.setdefault(number, (other, []))[1].append((u, v))
    against: list[str] = []
    unknown: list[str] = []
    for (head, other_head), blocks in lists.items():
        if -1 in blocks:
            continue
        pairs = [p for _, found in blocks.values() for p in found]
        if _falls(blocks):
            against += _equal_shaped(state, pairs)
        elif _unsure(head, other_head, blocks) and not _direction(pairs):
            unknown += _equal_shaped(state, pairs)
    take_back(state, against, "the two sides number these blocks in opposite directions")
    take_back(state, unknown, "nothing shows that the two sides number these blocks in the same direction")


def _unsure(head: Head, other: Head, blocks: dict[int, tuple[int, list[tuple[Unit, Unit]]]]) -> bool:
    """Whether only their numbers say that two lists belong together and count the same way."""
    mine, theirs = ({t for t in concepts_of(h) if isinstance(t, str)} for h in (head, other))
    if not mine or not theirs:
        return False
    walk = set(table()["directions"]["top_down"])  # such parts run from the last stage to the first
    if (mine | theirs) & walk and not (mine & theirs) - {"block"}:
        return True
    return not mine & theirs and _based_apart(blocks)


def _based_apart(blocks: dict[int, tuple[int, list[tuple[Unit, Unit]]]]) -> bool:
    """Whether one side counts by attribute names (`refinenet1`) and from another number than the other.

    The indices of a list are the order in which its blocks run; names may count from either end.
    """
    first = min(blocks)
    other, ((u, v), *_) = blocks[first]
    words = any(str(n) not in x.path.split(".") for n, x in ((first, u), (other, v)))
    return words and first != other


def _direction(pairs: list[tuple[Unit, Unit]]) -> bool:
    """Whether two blocks at least are unlike all others in what they hold: they show which way it goes."""
    blocks: dict[object, Counter[object]] = defaultdict(Counter)
    for u, _ in pairs:
        blocks[u.name.flat[: (_first_number(u) or 0) + 1]][u.exact] += 1
    kinds = Counter(frozenset(held.items()) for held in blocks.values())
    return sum(n == 1 for n in kinds.values()) > 1


def _first_number(unit: Unit) -> int | None:
    return unit.name.places[0] if unit.name.places else None


def _falls(blocks: dict[int, tuple[int, list[tuple[Unit, Unit]]]]) -> bool:
    ordered = [blocks[n][0] for n in sorted(blocks)]
    return any(a > b for a, b in pairwise(ordered))


def _equal_shaped(state: State, pairs: list[tuple[Unit, Unit]]) -> list[str]:
    """Model keys of the pairs whose shapes occur in several blocks."""
    blocks: dict[object, set[object]] = defaultdict(set)
    for u, _ in pairs:
        blocks[u.exact].add(u.name.flat[: (_first_number(u) or 0) + 1])
    return [
        state.target_names[n]
        for u, v in pairs
        if len(blocks[u.exact]) > 1
        for leaf in v.leaves.values()
        for n in leaf.keys
    ]


def namesakes(state: State) -> None:
    """A module of the model is left out although what has its name and shapes fills another module."""
    free = {_own_name(v): v for v in state.targets if v.index not in state.matching.certain}
    if not free:
        return
    sources = {u.index: u for u in state.sources}
    targets = {u.index: u for u in state.targets}
    names_s, names_t = (Counter(_own_name(u) for u in units) for units in (state.sources, state.targets))
    for t, s in state.matching.certain.items():
        name = _own_name(sources[s])
        left = free.get(name)
        if left is None or left.exact != sources[s].exact or not names_s[name] == names_t[name] == 1:
            continue
        if _own_name(targets[t]) != name and any(c.isalpha() for c in name):
            why = f"the model has `{left.path}` too, which is called like the source"
            take_back(state, [state.target_names[n] for n in targets[t].whole], why)
            take_back(
                state, [state.target_names[n] for n in left.whole], why, _copies(state, sources[s], left)
            )


def _copies(state: State, source: Unit, target: Unit) -> dict[str, list[Choice]]:
    """Each tensor of the target from the source's of the same role, as it is."""
    return {
        state.target_names[n]: [Choice((state.source_names[m],), (), "the same name for the module")]
        for role, leaf in target.leaves.items()
        if role in source.leaves and source.leaves[role].shape == leaf.shape
        for n, m in zip(leaf.keys, source.leaves[role].keys, strict=False)
        if len(leaf.keys) == len(source.leaves[role].keys) == 1
    }


def _own_name(unit: Unit) -> str:
    return unit.path.rpartition(".")[2]


def rivals(state: State) -> None:
    """Another part of the checkpoint explains the model as well."""
    base = state.base
    if not base.rivals:
        return
    by_name = {strip_key(k): k for k in state.source.specs}
    more: dict[str, list[Choice]] = defaultdict(list)
    for name, key in state.target_names.items():
        for prefix in base.rivals:
            other = by_name.get(f"{prefix}.{name}")
            if other is not None and state.source[other].shape == state.target[key].shape:
                more[key].append(Choice((other,), (), f"under `{prefix}.`"))
    heads = tuple(f"{prefix}." for prefix in base.rivals)
    touched = [
        k
        for k, m in state.matches.items()
        if more.get(k) or any(strip_key(s).startswith(heads) for s in m.sources)
    ]
    take_back(state, touched, "several parts of the checkpoint fit equally well", more)
    options = [base.source, *base.rivals]
    state.questions.append(
        Question(
            "envelope",
            f"{len(options)} parts of the checkpoint fit the model equally well: "
            + ", ".join(f"`{o}`" for o in options),
            tuple(touched),
            (),
            (),
            tuple((f"--choose {o}", f"load the keys under `{o}.`") for o in options),
        )
    )


def scattered(state: State) -> None:
    """A module of one name on both sides keeps its own tensors: one that it lost is no stranger's.

    A tensor of another module with the right shape is then no proof, however few are left.
    """
    names = {key: name for name, key in state.source_names.items()}
    for unit in state.whole_targets:
        if sum(map(len, unit)) < 2:
            continue  # one tensor is the module's own or a stranger's, never both
        rows = [(n, state.matches.get(state.target_names[n])) for leaf in unit for n in leaf]
        homes = {
            n: names[m.sources[0]].rpartition(".")[0]
            for n, m in rows
            if m is not None and m.status == "safe" and len(m.sources) == 1 and m.sources[0] in names
        }
        own = {n for n, home in homes.items() if home and home == n.rpartition(".")[0]}
        strangers = [
            m.target
            for n, m in rows
            if m is not None and n in homes and n not in own and _of_module(n.rpartition(".")[2])
            if not any(_names_it(e, n.rpartition(".")[0]) for e in m.evidence)
        ]
        if own and strangers:
            take_back(state, strangers, "the module of this name lost it; another's may not be meant")


def _of_module(leaf: str) -> bool:
    """Whether torch's modules call a tensor so, recurrent layers and attention included."""
    return leaf in _LEAVES or leaf.startswith(("weight_", "bias_", "in_proj_"))


def _names_it(reason: str, module: str) -> bool:
    """Whether the reason is the module's own name (`q_bias` beside `query.weight`), not the tensor's."""
    own = name_of(module).concepts[-1] if module else ()
    return any(reason == f"both are `{word}`" for word in own if word not in _LEAVES)


def partly_used(state: State) -> None:
    """A module's tensors travel together: where only some found their place, none is certain."""
    if not (state.whole_sources or state.whole_targets):
        return
    folded = {k for keys in state.folds.values() for k in keys}  # asked about once, elsewhere
    filled = {k for k, m in state.matches.items() if m.status == "safe" or k in folded}
    used = {s for k in filled for s in _all_sources(state.matches[k])}
    fills: dict[str, list[str]] = {}
    keys: set[str] = set()
    twins = {state.target[k].shape for k in state.followers}
    for unit in state.whole_sources:
        mine = [state.source_names[n] for leaf in unit for n in leaf]
        if used.isdisjoint(mine) or used.issuperset(mine):
            continue
        mine = [k for k in mine if k in used or state.source[k].shape not in twins]
        if not used.issuperset(mine):
            fills = fills or _fills(state)
            keys.update(k for s in mine for k in fills.get(s, ()))
    for unit in state.whole_targets:
        theirs = [state.target_names[n] for leaf in unit for n in leaf]
        if not (filled.isdisjoint(theirs) or filled.issuperset(theirs)):
            keys |= set(theirs) & filled
    if keys:
        take_back(state, sorted(keys), "only some of this module's tensors have a partner")


def _fills(state: State) -> dict[str, list[str]]:
    """Checkpoint key -> the model keys that it fills."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, match in state.matches.items():
        for source in match.sources:
            found[source].append(key)
    return found


def _all_sources(match: Match) -> tuple[str, ...]:
    return match.sources or tuple(s for c in match.choices for s in c.sources)


def refused(state: State) -> None:
    """Another architecture or variant: claim nothing."""
    if state.refusal:
        refuse(state, state.refusal)


def refuse(state: State, why: str) -> None:
    """Another architecture or variant: claim nothing."""
    state.refusal = state.refusal or why
    state.reporter.refused(why)
    for key, match in list(state.matches.items()):
        if match.status != "kept" and not is_declared(match):
            state.matches[key] = Match(key, "missing", evidence=("no repair is offered: " + why,))


def adapters(state: State) -> None:
    """The checkpoint holds more tensors for a matched module than the model does (LoRA, quantised)."""
    targets = {u.index: u for u in state.targets}
    sources = {u.index: u for u in state.sources}
    taken = set(state.matching.certain.values())
    below: dict[str, list[str]] = defaultdict(list)
    for unit in state.sources:
        if unit.index not in taken:
            parent = unit.path
            while "." in parent:
                parent = parent.rpartition(".")[0]
                below[parent].append(unit.path)
    touched: list[str] = []
    extra: set[str] = set()
    for t, s in state.matching.certain.items() if below else ():
        unit, source = targets[t], sources[s]
        inner = below.get(unit.path) or (below.get(source.path) if not source.bare else None)
        if inner and "running_mean" not in unit.leaves:
            touched += [state.target_names[n] for leaf in unit.leaves.values() for n in leaf.keys]
            extra.update(inner)
    if touched and not facts.accepted(state, "adapter", "companions"):
        take_back(state, touched, "the checkpoint holds further tensors for this very module")
        example = min(extra)
        state.questions.append(
            Question(
                "adapter",
                f"{len(touched)} tensors have companions in the checkpoint that the model does not know, "
                f"such as `{example}`",
                tuple(touched),
                tuple(sorted(extra)),
                ("loading the base tensor alone may drop what was trained (LoRA: W + B A alpha / r)",),
                ((f"--drop '{example.rpartition('.')[0]}.**'", "leave the companions unused"),),
            )
        )
