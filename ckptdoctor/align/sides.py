"""One tree prepared for scoring: words, roles, ranks and structure of every unit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ckptdoctor.align.names import Token
from ckptdoctor.align.roles import kind_of, scope_of, slots_of, trio_values, values_of
from ckptdoctor.align.units import OPTIONAL_ROLES, Unit, canonical_shape

_LOCAL = 64  # units below an ancestor up to which ranks within it are told
_DECAY = (1.0, 0.7, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1)  # what a word weighs, from the leaf up


@dataclass
class Side:
    """One tree prepared for scoring."""

    units: list[Unit]
    ordered: bool
    slots: dict[int, str] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    sorts: dict[int, int] = field(default_factory=dict)  # the same for units alike but for their places
    values: dict[int, dict[str, Token]] = field(default_factory=dict)
    bags: dict[int, dict[Token, float]] = field(default_factory=dict)
    ranks: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    numbered: dict[tuple[Token, ...], frozenset[int]] = field(default_factory=dict)  # indices at a place
    family: dict[int, tuple[int, int]] = field(default_factory=dict)  # rank in, size of (skeleton, class)
    varying: dict[int, frozenset[int]] = field(default_factory=dict)  # which numbers tell a family apart
    order_rank: dict[int, tuple[int, int]] = field(default_factory=dict)  # k-th of its class
    hosts: dict[int, int] = field(default_factory=dict)  # batch norm -> the convolution that it follows
    scopes: dict[int, list[int]] = field(default_factory=dict)  # structure hashes of the ancestors
    scope_count: Counter[int] = field(default_factory=Counter)
    scope_rank: dict[int, dict[int, int]] = field(default_factory=dict)  # unit -> scope -> k-th of its like
    local: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)  # unit -> scope -> rank, count


def prepare(units: Sequence[Unit], ordered: bool) -> Side:
    """Everything about single units that scoring needs."""
    side = Side(list(units), ordered)
    side.slots = slots_of(units)
    for unit in units:
        side.kinds[unit.index] = kind_of(unit)
        side.values[unit.index] = dict(values_of(unit))
        side.bags[unit.index] = _bag(unit)
    for index, part in trio_values(units).items():
        side.values[index]["ffn"] = part
    _sorts(side)
    _number_ranks(side)
    _families(side)
    _structure(side)
    side.hosts = _hosts(side)
    return side


def last_word(unit: Unit) -> str:
    """The last segment, unless it is a number."""
    last = unit.path.rpartition(".")[2]
    return "" if last.isdigit() else last


def _sorts(side: Side) -> None:
    known: dict[tuple[object, ...], int] = {}
    for unit in side.units:
        i, shapes = unit.index, tuple([(role, leaf.shape) for role, leaf in unit.leaves.items()])
        said = tuple(side.bags[i].items()), tuple(side.values[i].items()), side.slots.get(i)
        side.sorts[i] = known.setdefault((last_word(unit), side.kinds[i], shapes, *said), len(known))


def _hosts(side: Side) -> dict[int, int]:
    """Which convolution a batch norm belongs to, where a module holds just one of each."""
    parents: dict[str, list[Unit]] = defaultdict(list)
    for unit in side.units:
        parents[unit.path.rpartition(".")[0]].append(unit)
    found: dict[int, int] = {}
    for members in parents.values():
        norms = [u for u in members if "running_mean" in u.leaves]
        matrices = [u for u in members if side.kinds[u.index] == "matrix"]
        if len(norms) == len(matrices) == 1:
            found[norms[0].index] = matrices[0].index
    return found


def followed(side: Side) -> dict[int, int]:
    """The same by registration order, in blocks where every batch norm directly follows a convolution
    of its width. Only a model's own order says that; a file's may be any.
    """
    found = dict(side.hosts)
    blind: set[str] = set()
    for before, unit in pairwise([None, *side.units]):
        if unit is None or "running_mean" not in unit.leaves:
            continue
        if before is not None and _feeds(before, unit):
            found.setdefault(unit.index, before.index)
        else:
            blind.add(scope_of(unit))
    scopes = {u.index: scope_of(u) for u in side.units if u.index in found}
    return {i: host for i, host in found.items() if i in side.hosts or scopes[i] not in blind}


def _feeds(before: Unit, norm: Unit) -> bool:
    weight = before.leaves.get("weight")
    width = norm.leaves["running_mean"].shape[0]
    return weight is not None and bool(weight.shape[1:]) and width in weight.shape[:2]


def _bag(unit: Unit) -> dict[Token, float]:
    bag: dict[Token, float] = {}
    depth = 0
    for segment in reversed(unit.name.concepts):
        spoken = [t for t in segment if isinstance(t, str)]
        for token in spoken:
            bag[token] = max(bag.get(token, 0.0), _DECAY[min(depth, len(_DECAY) - 1)])
        depth += bool(spoken)
    if "Embedding" in unit.cls:
        bag["embed"] = 1.0  # the model's own class says so
    return bag


def _number_ranks(side: Side) -> None:
    """Each number of a path as (rank, count) among the numbers that stand at its place."""
    seen: dict[tuple[Token, ...], set[int]] = defaultdict(set)
    deeper: dict[tuple[Token, ...], set[bool]] = defaultdict(set)
    for unit in side.units:
        flat = unit.name.steps
        for i, token in enumerate(flat):
            if isinstance(token, int):
                seen[flat[:i]].add(token)
                deeper[flat[:i]].add(i + 1 < len(flat) and isinstance(flat[i + 1], int))
    # Blocks and chunks of the same blocks side by side (`layers.3`, `layers.2.4`) have no common count.
    for prefix, kinds in deeper.items():
        if len(kinds) > 1 and _chunks_beside_blocks(side, prefix):
            del seen[prefix]
    side.numbered = {prefix: frozenset(ns) for prefix, ns in seen.items()}
    place = {prefix: {n: r for r, n in enumerate(sorted(ns))} for prefix, ns in seen.items()}
    for unit in side.units:
        flat = unit.name.steps
        pairs = [
            (place[flat[:i]][t], len(place[flat[:i]]))
            for i, t in enumerate(flat)
            if isinstance(t, int) and flat[:i] in place
        ]
        side.ranks[unit.index] = tuple(p for p in pairs if p[1] > 1)


def _chunks_beside_blocks(side: Side, prefix: tuple[Token, ...]) -> bool:
    """Whether some numbered child holds what others hold one numbered level deeper."""
    n = len(prefix)
    near: dict[Token, Counter[object]] = defaultdict(Counter)
    far: dict[tuple[Token, ...], Counter[object]] = defaultdict(Counter)
    for unit in side.units:
        steps = unit.name.steps
        if len(steps) <= n + 1 or steps[:n] != prefix or not isinstance(steps[n], int):
            continue
        if isinstance(steps[n + 1], int):
            far[steps[: n + 2]][unit.exact] += 1
        else:
            near[steps[n]][unit.exact] += 1
    return any(x.total() > 1 and x == y for x in near.values() for y in far.values())


def _families(side: Side) -> None:
    families: dict[tuple[str, object], list[Unit]] = defaultdict(list)
    classes: dict[object, list[Unit]] = defaultdict(list)
    for unit in side.units:
        families[unit.name.skeleton, unit.exact].append(unit)
        classes[unit.key].append(unit)
    for members in families.values():
        ranked = sorted(members, key=lambda u: u.name.numbers)
        columns = zip(*(u.name.numbers for u in ranked), strict=False)
        varying = frozenset(i for i, column in enumerate(columns) if len(set(column)) > 1)
        side.varying.update((u.index, varying) for u in ranked)
        for rank, unit in enumerate(ranked):
            side.family[unit.index] = (rank, len(members))
    for members in classes.values():
        for rank, unit in enumerate(members):
            side.order_rank[unit.index] = (rank, len(members))


def _structure(side: Side) -> None:
    """Hash of the shapes under every ancestor (words and numbers count as levels of the tree)."""
    sums: dict[tuple[Token, ...], int] = defaultdict(int)
    first: dict[tuple[Token, ...], int] = {}
    size: Counter[tuple[Token, ...]] = Counter()
    for unit in side.units:
        own = sum(
            hash((role, canonical_shape(leaf.shape))) & 0xFFFFFFFFFFFF
            for role, leaf in unit.leaves.items()
            if role not in OPTIONAL_ROLES
        )
        flat = unit.name.steps
        for depth in range(1, len(flat)):
            prefix = flat[:depth]
            sums[prefix] += own
            size[prefix] += 1
            first.setdefault(prefix, unit.index)
    places: dict[int, dict[int, tuple[Token, ...]]] = defaultdict(dict)
    for prefix, total in sums.items():
        if size[prefix] > 1:
            places[total][first[prefix]] = prefix  # of a chain of ancestors the innermost
    side.scope_count = Counter({total: len(found) for total, found in places.items()})
    ranks = _scope_ranks(places)
    for unit in side.units:
        flat = unit.name.steps
        found = [sums[flat[:d]] for d in range(1, len(flat)) if size[flat[:d]] > 1]
        side.scopes[unit.index] = list(dict.fromkeys(found))
        side.scope_rank[unit.index] = {
            sums[flat[:d]]: ranks[flat[:d]] for d in range(1, len(flat)) if flat[:d] in ranks
        }
    _local_ranks(side, sums, size)


def _scope_ranks(places: dict[int, dict[int, tuple[Token, ...]]]) -> dict[tuple[Token, ...], int]:
    """Rank of each part among the parts of equal shapes, where only numbers tell their names apart."""
    ranks = {}
    for found in places.values():
        prefixes = list(found.values())
        words = {tuple("#" if isinstance(t, int) else t for t in p) for p in prefixes}
        if len(prefixes) > 1 and len(words) == 1:
            for rank, prefix in enumerate(sorted(prefixes, key=_numbers)):
                ranks[prefix] = rank
    return ranks


def _numbers(prefix: tuple[Token, ...]) -> tuple[int, ...]:
    return tuple(t for t in prefix if isinstance(t, int))


def _local_ranks(side: Side, sums: dict[tuple[Token, ...], int], size: Counter[tuple[Token, ...]]) -> None:
    """Rank among the units of the same shapes below each ancestor, where numbers alone tell them apart."""
    members: dict[tuple[tuple[Token, ...], object], list[Unit]] = defaultdict(list)
    for unit in side.units:
        flat = unit.name.steps
        for depth in range(1, len(flat)):
            if 1 < size[flat[:depth]] <= _LOCAL:
                members[flat[:depth], unit.exact].append(unit)
    for (prefix, _), units in members.items():
        if len(units) > 1 and len({u.name.skeleton for u in units}) == 1:
            for rank, unit in enumerate(sorted(units, key=lambda u: u.name.numbers)):
                side.local.setdefault(unit.index, {})[sums[prefix]] = (rank, len(units))
