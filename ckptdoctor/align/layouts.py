"""What shapes cannot show: claims that need a recipe, a config or a decision become questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from ckptdoctor.align import facts
from ckptdoctor.align.checks import take_back
from ckptdoctor.align.chosen import is_declared
from ckptdoctor.align.model import Question
from ckptdoctor.align.names import Token, table, words
from ckptdoctor.align.roles import kind_of, values_of
from ckptdoctor.align.units import Unit, is_stacked

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State

Pairs = list[tuple[Unit, Unit]]
_FUSED = ("qkv", "kv")
_TURNED = ("q", "k", "qkv")


def invisible(state: State) -> None:
    """Fused q/k/v of unknown packing, rotary layouts, and columns after a flatten."""
    if not state.matching.certain:
        return
    sources = {u.index: u for u in state.sources}
    targets = {u.index: u for u in state.targets}
    pairs = [(sources[s], targets[t]) for t, s in state.matching.certain.items()]
    crossed = _crossed(pairs, _packing_crossed, _rotary_crossed, _patches_crossed, _gates_crossed)
    packed, turning, patches, gated = crossed
    _question(
        state,
        packed,
        "packed",
        "how q, k and v are packed inside a fused tensor cannot be seen from shapes",
        "concatenated, per head or per group give the same shape",
    )
    _question(
        state,
        turning if turning and not _has_positions(state) else [],
        "rotary",
        "the order of rotary dimensions in q and k cannot be seen from shapes",
        "names like `wq` come with interleaved pairs, the model's with halves (or the reverse): the rows of "
        "q and k may have to be permuted by head",
    )
    _question(
        state,
        patches,
        "patch",
        "the order of pixels and channels inside a flattened patch cannot be seen from shapes",
        "(c, h, w) and (h, w, c) give the same number of columns",
    )
    _question(
        state,
        gated,
        "gateup",
        "how gate and up are packed inside the experts' tensor cannot be seen from shapes",
        "one after the other, or column by column (as gpt-oss does), give the same shape",
    )
    _flatten_warnings(state, pairs)
    _rotary_warning(state, pairs)


def _crossed(pairs: Pairs, *checks: Callable[[Unit, Unit], bool]) -> list[Pairs]:
    """The pairs that each check finds; those of equal blocks are looked at once."""
    found: list[Pairs] = [[] for _ in checks]
    known: dict[object, list[Pairs]] = {}
    for u, v in pairs:
        kind = _kind_of_name(u), _kind_of_name(v), *_shapes(u), None, *_shapes(v)
        if kind not in known:
            known[kind] = [rows for rows, check in zip(found, checks, strict=True) if check(u, v)]
        for rows in known[kind]:
            rows.append((u, v))
    return found


def _kind_of_name(unit: Unit) -> tuple[object, ...]:
    """All that the checks ask of the name: of the last segment, or of a number's whole path, as spelt."""
    last = unit.path.rpartition(".")[2]
    return unit.name.form, unit.bare, unit.role, unit.cls, last if _said(last) else unit.path


def _shapes(unit: Unit) -> Iterator[object]:
    for role, leaf in unit.leaves.items():
        yield role
        yield leaf.shape


def _gates_crossed(u: Unit, v: Unit) -> bool:
    """Fused gates of stacked experts that have to be turned: libraries that do so pack them in two ways."""
    fused = "gateup" in (values_of(u).get("ffn"), values_of(v).get("ffn"))
    return fused and is_stacked(u) and is_stacked(v) and u.leaves["weight"].shape != v.leaves["weight"].shape


def _rotary_warning(state: State, pairs: Pairs) -> None:
    """Queries and keys that change their names in a network without a table of positions."""
    if _has_positions(state) or any("rel_pos" in seg for u in state.targets for seg in u.name.concepts):
        return
    spoken = {t for q in state.questions for t in q.targets}
    for u, v in pairs:
        if v.name.form.values.get("part") not in _TURNED:
            continue
        weight = v.leaves.get("weight")
        if values_of(v).get("part") not in _TURNED or weight is None or _raw(u) == _raw(v):
            continue
        key = state.target_names[weight.keys[0]]
        if key not in spoken and not is_declared(state.matches[key]):
            state.warnings.append(
                f"`{key}` and its likes are renamed, and the model has no table of positions: if both code "
                "bases turn queries and keys by rotary embeddings and pair a head's rows in other orders "
                "(neighbours or halves), the shapes are the same and the values are not"
            )
            return


def _patches_crossed(u: Unit, v: Unit) -> bool:
    """A patch embedding that is a matrix on one side and a convolution on the other."""
    if "weight" not in u.leaves or "weight" not in v.leaves:
        return False
    if len(u.leaves["weight"].shape) == len(v.leaves["weight"].shape):
        return False
    spoken = {t for x in (u, v) for seg in x.name.concepts for t in seg}
    spatial = max((x.leaves["weight"].shape for x in (u, v)), key=len)
    return "patch" in spoken and any(d > 1 for d in spatial[2:])


def _question(state: State, pairs: Pairs, kind: str, title: str, note: str) -> None:
    keys = [state.target_names[n] for _, v in pairs for leaf in v.leaves.values() for n in leaf.keys]
    keys = [k for k in keys if k not in state.matches or not is_declared(state.matches[k])]
    if not keys or facts.accepted(state, f"{kind}-layout"):
        return
    take_back(state, keys, title)
    state.questions.append(
        Question(
            kind, title, tuple(keys), (), (note,), ((f"--accept {kind}-layout", "copy them as they are"),)
        )
    )


def _raw(unit: Unit) -> tuple[Token, ...]:
    """Words of the last segment that says something."""
    rest = unit.path
    while True:
        rest, dot, segment = rest.rpartition(".")
        found = _said(segment)
        if found or not dot:
            return found


@lru_cache(maxsize=65536)
def _said(segment: str) -> tuple[Token, ...]:
    found = words(segment)
    return found if any(isinstance(t, str) for t in found) else ()


def _listed(unit: Unit, kind: str) -> bool:
    said = _says(unit.path.rpartition(".")[2], kind)
    return _in_list(_raw(unit), kind) if said is None else said


@lru_cache(maxsize=65536)
def _says(segment: str, kind: str) -> bool | None:
    found = _said(segment)
    return _in_list(found, kind) if found else None


@lru_cache(maxsize=65536)
def _in_list(raw: tuple[Token, ...], kind: str) -> bool:
    return " ".join(map(str, raw)) in table()["layouts"][kind]


def _packing_crossed(u: Unit, v: Unit) -> bool:
    fused = values_of(u).get("part") in _FUSED or values_of(v).get("part") in _FUSED
    if not fused or _raw(u) == _raw(v):
        return False
    return _listed(u, "packed") or _listed(v, "packed")


def _rotary_crossed(u: Unit, v: Unit) -> bool:
    return _listed(u, "interleaved") != _listed(v, "interleaved")


def _has_positions(state: State) -> bool:
    """A learned position table speaks against rotary embeddings."""
    return any(u.name.form.values.get("table") == "pos" for u in state.targets)


def _flatten_warnings(state: State, pairs: Pairs) -> None:
    """A renamed dense layer behind a convolution: (C,H,W) or (H,W,C) columns look alike."""
    channels = 0
    renamed = {v.index: (u, v) for u, v in pairs if u.name.skeleton != v.name.skeleton}
    for target in state.targets:
        weight = target.leaves.get("weight")
        if weight is None:
            continue
        if (len(weight.shape) > 2 and not target.bare) or (channels and kind_of(target) == "norm"):
            channels = next(iter(weight.shape), 0)
            continue
        if len(weight.shape) == 2:
            columns = weight.shape[1]
            if channels and target.index in renamed and columns % channels == 0 and columns > channels:
                key = state.target_names[weight.keys[0]]
                state.warnings.append(
                    f"`{key}` is a dense layer behind a flatten ({columns} = {channels} x "
                    f"{columns // channels} columns): if the two code bases flatten in different orders "
                    "((C,H,W) or (H,W,C)), the shapes are the same and the values are not"
                )
            channels = 0
