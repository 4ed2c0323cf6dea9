"""Averaged weights (EMA) beside the trained ones: which is which, and names that lost their dots.

- a state dict of its own (timm ``state_dict_ema``, BasicSR ``params_ema`` ...): rows of :mod:`.layouts`;
- LDM ``LitEma``: ``model_ema.`` and the parameter's name without its dots, in the same state dict;
- MMCV ``EMAHook``: ``ema_`` and the name with underscores for dots, in the same state dict. At the end of an
  epoch MMCV swaps the two, so which of them is the average depends on when the file was written.

Names are given back their dots only where that is injective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ckptdoctor.decisions import Decision
from ckptdoctor.errors import DecisionError, UndecidedError
from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.formats.tensors import TensorReader
from ckptdoctor.keys import printable
from ckptdoctor.training.findings import some
from ckptdoctor.training.source import of_archive
from ckptdoctor.wrappers import strip_key

SUFFIX = "[ema]"
COUNTERS = frozenset({"decay", "num_updates", "n_averaged", "initted", "step", "steps"})


@dataclass(frozen=True, slots=True)
class Mangling:
    """One way of writing a name as an attribute. ``swapped``: the average may be the other one."""

    writer: str
    prefix: str
    mangle: Callable[[str], str]
    swapped: bool = False


MANGLINGS = (
    Mangling("LitEma (latent diffusion)", "model_ema.", lambda name: name.replace(".", "")),
    Mangling("MMCV EMAHook", "ema_", lambda name: name.replace(".", "_"), swapped=True),
)


def averages(archive: Archive) -> tuple[StateDict, ...]:
    """The state dicts ``PATH[ema]`` that are inside of others under mangled names."""
    found = (demangled(state_dict) for state_dict in archive.state_dicts)
    return tuple(made for made in found if made is not None)


def mangled_in(state_dict: StateDict) -> tuple[Mangling, list[str]] | None:
    """How the averaged names of a state dict are written, and these keys; None where there are none."""
    for way in MANGLINGS:
        keys = [
            k for k in state_dict.tree.specs if k.startswith(way.prefix) and "." not in k[len(way.prefix) :]
        ]
        named = [k for k in keys if k[len(way.prefix) :] not in COUNTERS]
        if len(named) > 1:
            return way, keys
    return None


def demangled(state_dict: StateDict) -> StateDict | None:
    """The same state dict with averages in the place of the trained weights. Raises DecisionError."""
    found = mangled_in(state_dict)
    if found is None:
        return None
    way, keys = found
    named = {k[len(way.prefix) :]: k for k in keys if k[len(way.prefix) :] not in COUNTERS}
    raw = [k for k in state_dict.tree.specs if k not in set(keys)]
    front = _front(raw, named, way)
    if front is None:
        raise DecisionError(
            f"the averaged weights of {way.writer} ({some(named.values(), 2)}) have names that lead to no "
            "parameter of the same state dict"
        )
    taken: dict[str, str] = {}
    for key in raw:
        own = named.get(way.mangle(key[len(front) :])) if key.startswith(front) else None
        if own is None:
            continue
        if own in taken:
            raise DecisionError(
                f"`{printable(own)}` may be the average of `{printable(taken[own])}` or of "
                f"`{printable(key)}`: without their dots both have one name"
            )
        taken[own] = key
    specs = state_dict.tree.specs
    averaged = {key: own for own, key in taken.items()}
    wrong = [k for k, own in averaged.items() if specs[k].shape != specs[own].shape]
    if wrong:
        raise DecisionError(f"the average of {some(wrong)} has another shape than the parameter")
    tree = replace(state_dict.tree, specs={k: specs[averaged.get(k, k)] for k in raw})
    recipes = {
        k: state_dict.recipes[averaged.get(k, k)] for k in raw if averaged.get(k, k) in state_dict.recipes
    }
    note = f"averages by {way.writer} for {len(averaged)} of {len(raw)} keys"
    return StateDict(state_dict.path + SUFFIX, tree, note, recipes)


def _front(raw: Sequence[str], named: dict[str, str], way: Mangling) -> str | None:
    """The prefix under which the averaged network is in the state dict (``model.`` for LDM)."""
    fronts = [""]
    for key in raw[:1000]:
        parts = key.split(".")
        fronts += [".".join(parts[:n]) + "." for n in range(1, min(len(parts), 4))]
    for front in dict.fromkeys(fronts):
        have = {way.mangle(k[len(front) :]) for k in raw if k.startswith(front)}
        if have >= set(named):
            return front
    return None


def resolve(archive: Archive, decisions: Sequence[Decision]) -> tuple[Archive, tuple[Decision, ...]]:
    """``choose=ema`` and ``choose=raw`` as the path that they mean, ``PATH[ema]`` added to the archive.

    Raises :class:`UndecidedError` where it cannot be known which is the average, :class:`DecisionError` where
    there is none.
    """
    made = []
    known = {s.path for s in archive.state_dicts}
    for decision in decisions:
        if decision.kind == "choose" and decision.value in ("ema", "raw") and decision.value not in known:
            path = _meant(archive, decision.value)
            decision = Decision("choose", path)
        if decision.kind == "choose" and decision.value.endswith(SUFFIX):
            archive = with_averages(archive)
        made.append(decision)
    return archive, tuple(d for d in made if not (d.kind == "choose" and d.value == ""))


def with_averages(archive: Archive) -> Archive:
    """The archive with its ``PATH[ema]`` state dicts."""
    known = {s.path for s in archive.state_dicts}
    more = tuple(s for s in averages(archive) if s.path not in known)
    return replace(archive, state_dicts=(*archive.state_dicts, *more)) if more else archive


def _meant(archive: Archive, word: str) -> str:
    training = of_archive(archive)
    mangled = [(s, m) for s in archive.state_dicts if (m := mangled_in(s)) is not None]
    if mangled:
        state_dict, (way, _) = mangled[0]
        if way.swapped:
            raise UndecidedError(
                f"{training.file}: {way.writer} swaps trained and averaged weights as an epoch ends, so "
                f"which of them `{way.prefix}*` holds depends on when the file was written; choose one: "
                f"decisions=['choose={state_dict.path + SUFFIX}'] takes `{way.prefix}*`, "
                f"decisions=['drop={way.prefix}*'] the others"
            )
        return state_dict.path + SUFFIX if word == "ema" else state_dict.path
    paths = training.paths("ema" if word == "ema" else "model")
    if len(paths) == 1 or (paths and word == "raw"):
        return paths[0]
    several = ", ".join(f"`{printable(s.path)}`" for s in archive.state_dicts)
    if paths:
        raise UndecidedError(
            f"{training.file}: several may be averaged weights; choose one of {several} by name"
        )
    raise DecisionError(
        f"choose={word}: no averaged weights are known by name in {training.file}; it has {several}"
    )


@dataclass(frozen=True)
class Apart:
    """How far two state dicts are apart: over all values, and the key where they differ most."""

    compared: int
    largest: float  # absolute difference of one value
    key: str
    relative: float  # norm of the difference by the norm of the first

    def __str__(self) -> str:
        return (
            f"{self.compared} tensors differ by {self.relative:.2%} of their norm, at most "
            f"{self.largest:.3g} in `{printable(self.key)}`"
        )


def apart(archive: Archive, first: str, second: str) -> Apart:
    """Compare two state dicts of a file by name (without wrappers). Reads all values; needs torch."""
    whole = with_averages(archive)
    one, other = whole[first], whole[second]
    theirs = {strip_key(k): k for k in other.tree.specs}
    readers = TensorReader(whole, one), TensorReader(whole, other)
    squares, norm, largest, where, count = 0.0, 0.0, 0.0, "", 0
    for key, spec in one.tree.specs.items():
        partner = theirs.get(strip_key(key))
        if (
            partner is None
            or other.tree[partner].shape != spec.shape
            or not spec.dtype.startswith(("float", "bf"))
        ):
            continue
        a, b = readers[0](key).double(), readers[1](partner).double()
        count += 1
        if not a.numel():
            continue
        most = float((a - b).abs().max())
        squares += float((a - b).square().sum())
        norm += float(a.square().sum())
        if most > largest or not where:
            largest, where = most, key
    return Apart(count, largest, where, (squares / norm) ** 0.5 if norm else 0.0)
