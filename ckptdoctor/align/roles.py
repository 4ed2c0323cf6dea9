"""What a unit's name says it is for: attention part, norm slot, table, modality ..."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import combinations

from ckptdoctor.align.names import Form, Token, concepts_of, table
from ckptdoctor.align.units import Unit

_OUT_WORDS = frozenset({"proj", "linear", "out", "output", "project", "c"})
_ATTENTION = frozenset({"attn", "xattn"})
_NORM_CLASSES = ("Norm",)


def kind_of(unit: Unit) -> str:
    """`norm`, `scale`, `matrix` or ``""``."""
    if unit.kind is None:
        unit.kind = _kind(unit)
    return unit.kind


def _kind(unit: Unit) -> str:
    if "running_mean" in unit.leaves or unit.cls.find("Norm") >= 0:
        return "norm"
    last = unit.name.form.last
    weight = unit.leaves.get("weight")
    if weight is not None and sum(d != 1 for d in weight.shape) > 1:
        return "matrix"
    if "norm" in last:
        return "norm"
    return "scale" if "scale" in last else ""


def values_of(unit: Unit) -> Mapping[str, Token]:
    """Exclusive values by group, with what only the context tells (`attn.proj` is the output)."""
    if unit.values is None:
        unit.values = _values(unit.name.form, unit.role, kind_of(unit) == "norm")
    return unit.values


@lru_cache(maxsize=65536)
def _values(form: Form, role: str, is_norm: bool) -> Mapping[str, Token]:
    found = dict(form.values)
    if role:
        found["leaf"] = role
    if is_norm:
        norm_of = found.get("part") if found.get("part") in form.last else None
        for group in ("part", "ffn", "reads"):
            found.pop(group, None)
        return found if norm_of is None else {**found, "part": norm_of}
    if _ATTENTION.isdisjoint(form.words):
        if found.get("part") == "o" and "mlp" in form.words:
            del found["part"]
    elif "part" not in found and not _OUT_WORDS.isdisjoint(form.last):
        found["part"] = "o"
    return found


@cache
def _slot_patterns() -> list[tuple[tuple[str, ...], str]]:
    slots = table()["slots"]
    rows = [(tuple(p.split()), slot) for slot in ("last", "cross", "first") for p in slots[slot]]
    return sorted(rows, key=lambda row: -len(row[0]))


def named_slot(unit: Unit) -> str:
    """`first`, `cross`, `last` or ``""``: which of the block's norms the name means."""
    words: list[Token] = [t for seg in scope_tail(unit) for t in seg if isinstance(t, str)]
    folded = set(concepts_of(tuple(words)))
    for pattern, slot in _slot_patterns():
        if set(pattern) <= folded:
            return slot
    return ""


def scope_tail(unit: Unit) -> Sequence[tuple[Token, ...]]:
    """Segments below the innermost block."""
    segments = unit.name.concepts
    for i in range(len(segments) - 2, -1, -1):
        if any(isinstance(t, int) for t in segments[i]):
            return segments[i + 1 :]
    return segments


def scope_of(unit: Unit) -> str:
    """Path of the innermost block (the last segment above the unit that carries a number)."""
    segments = unit.path.split(".")
    return ".".join(segments[: len(segments) - len(scope_tail(unit))])


def slots_of(units: Sequence[Unit]) -> dict[int, str]:
    """Slot of each norm in blocks with two or three norms; a trailing number counts as a slot too.

    Batch norms belong to a convolution each and have no such slots. The block's number of norms is
    part of the answer: the first of two and the first of three are not the same.
    """
    blocks: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        batch = "running_mean" in unit.leaves
        if (
            kind_of(unit) == "norm"
            and not batch
            and any(isinstance(t, int) for seg in unit.name.concepts for t in seg)
        ):
            blocks[scope_of(unit)].append(unit)
    found: dict[int, str] = {}
    for members in blocks.values():
        own = [u for u in members if len(scope_tail(u)) == 1]
        counted = own if len(own) in (2, 3) else members  # a norm inside the attention is another thing
        if len(counted) in (2, 3):
            found.update(_numbered_slots(counted))
    return found


def _numbered_slots(members: Sequence[Unit]) -> dict[int, str]:
    """Slots with the number of norms that they are counted among; of three a pair may stand apart."""
    slots = _block_slots(members)
    if not slots and len(members) == 3:
        pair = next((p for p in combinations(members, 2) if _pair_alone(p, members)), ())
        return {i: f"{slot} of 2 in 3" for i, slot in _block_slots(pair).items()} if pair else {}
    if len(members) == 3 and set(slots.values()) == {"first", "last"}:
        return {i: f"{slot} of 2 in 3" for i, slot in slots.items()}
    return {i: f"{slot} of {len(members)}" for i, slot in slots.items()}


def _pair_alone(pair: Sequence[Unit], members: Sequence[Unit]) -> bool:
    """Whether these two are numbered alike and the third is not."""
    skeletons = [u.name.skeleton for u in members]
    return all(_ends_in_number(u) and skeletons.count(u.name.skeleton) == 2 for u in pair)


def _block_slots(members: Sequence[Unit]) -> dict[int, str]:
    numbered = {u.index: u.name.numbers[-1] for u in members if _ends_in_number(u)}
    if len(numbered) == len(members) and len({u.name.skeleton for u in members}) == 1:
        names = ("first", "last") if len(members) == 2 else ("first", "cross", "last")
        ranked = sorted(members, key=lambda u: u.name.numbers)
        return {u.index: slot for u, slot in zip(ranked, names, strict=True)}
    slots = {u.index: named_slot(u) for u in members}
    known = [s for s in slots.values() if s]
    if len(known) == len(set(known)):
        if len(members) == 2 and len(known) == 1:  # the other one is what is left
            other = {"first": "last", "last": "first"}.get(known[0], "")
            slots = {i: s or other for i, s in slots.items()}
        return {i: s for i, s in slots.items() if s}
    return {}


def _ends_in_number(unit: Unit) -> bool:
    return bool(unit.name.flat) and isinstance(unit.name.flat[-1], int)


def trio_parts(members: Mapping[str, Unit]) -> dict[str, str]:
    """`gate`, `down`, `up` -> name, for three matrices called w1, w2, w3 of which the shapes tell w2.

    With the second as the odd one the first gates the third; with the third as the odd one it gates
    the second.
    """
    first, second, third = table()["trio"]["names"]
    if set(members) != {first, second, third}:
        return {}
    shape = {
        name: members[name].leaves["weight"].shape for name in members if "weight" in members[name].leaves
    }
    if len(shape) < 3 or shape[first] == shape[first][::-1]:
        return {}
    if shape[first] == shape[third] == shape[second][::-1]:
        return {"gate": first, "down": second, "up": third}
    if shape[first] == shape[second] == shape[third][::-1]:
        return {"gate": first, "up": second, "down": third}
    return {}


def trio_values(units: Sequence[Unit]) -> dict[int, str]:
    """Unit index -> `gate`, `up` or `down` for all numbered trios."""
    parents: dict[str, dict[str, Unit]] = defaultdict(dict)
    for unit in units:
        path, _, name = unit.path.rpartition(".")
        parents[path][name] = unit
    return {
        members[name].index: part
        for members in parents.values()
        for part, name in trio_parts(members).items()
    }
