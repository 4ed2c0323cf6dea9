"""Checking a live model after a load."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from operator import attrgetter, is_
from typing import TYPE_CHECKING

from ckptdoctor.casts import CastClass
from ckptdoctor.errors import VerifyError
from ckptdoctor.ops.bits import same_bits
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import listing
from ckptdoctor.targets.survey import Survey, slots_in, survey
from ckptdoctor.verify.replay import Casts, Fills, Reader, dtype_name, lossy_casts, quoted, replayed, words

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Before = Callable[[str], "Tensor | None"]


def verify_model(
    expansion: Fills,
    reader: Reader,
    model: nn.Module,
    *,
    ties: Sequence[Sequence[str]] = (),
    before: Before | None = None,
    pending: Before | None = None,
    into: Mapping[str, Tensor] | None = None,
    accept: Collection[str] = (),
    bits: bool = True,
) -> Casts:
    """Check a model that a plan has filled; returns ``{key: (dtype in the file, class of the cast)}``.

    ``reader`` should be a newly opened one. ``ties`` are the groups of keys that were one tensor before,
    ``before`` gives a key's value before the load, ``pending`` the value that is going to be written where
    that is still to be done, and ``into`` tensors that the model has to have still, since values were or are
    going to be written there. ``accept`` names cast classes that a person accepted. Without ``bits`` only
    values whose dtype changes are looked at.

    Raises :class:`VerifyError` with everything that is wrong: a key too many or too few, a tensor on meta,
    a value that is not what the plan makes of the file, a broken tie, a changed value that was to be kept,
    a cast that lost values.
    """
    seen = survey(model)
    state = seen.tensors
    problems = [*_keys(expansion, state), *_meta(seen), *_moved(state, into or {}), *_ties(state, ties)]
    casts = _there(expansion, reader, state, pending) if bits else _as_they_are(expansion, state)
    left = expansion.fills.keys() - casts.keys()
    for key, fill in expansion.fills.items() if left else ():
        if key not in left:
            continue
        tensor = state.get(key)
        if tensor is None or tensor.is_meta:
            continue
        if fill.kind != "load":
            problems += _own(key, fill, state, before)
            continue
        due = pending(key) if pending is not None else None
        problems += replayed(key, fill, reader, tensor.detach() if due is None else due, casts)
    problems += lossy_casts(casts, accept)
    if problems:
        raise VerifyError(words(problems, "the model is as it was before"))
    return casts


def _there(expansion: Fills, reader: Reader, state: Mapping[str, Tensor], pending: Before | None) -> Casts:
    """Keys whose value is the reader's own memory of its source, so that there is nothing to compare."""
    holds: Callable[[str, Tensor], bool] | None = getattr(reader, "holds", None)
    casts: Casts = {}
    if holds is None:
        return casts
    for key, fill in expansion.fills.items():
        tensor = state.get(key)
        if fill.kind != "load" or fill.ops or len(fill.sources) != 1 or tensor is None or tensor.is_meta:
            continue
        due = pending(key) if pending is not None else None
        found = tensor if due is None else due
        if holds(fill.sources[0], found):
            casts[key] = _unchanged(found.dtype)
    return casts


def _as_they_are(expansion: Fills, state: Mapping[str, Tensor]) -> Casts:
    """Keys whose dtype the plan does not change, which leaves nothing to look at but bits."""
    keys = [k for k, f in expansion.fills.items() if f.kind == "load" and not f.cast and k in state]
    dtypes = map(attrgetter("dtype"), map(state.__getitem__, keys))
    return dict(zip(keys, map(_unchanged, dtypes), strict=True))


@cache
def _unchanged(dtype: torch.dtype) -> tuple[str, CastClass]:
    return dtype_name(dtype), "lossless"


def _keys(expansion: Fills, state: Mapping[str, Tensor]) -> Iterator[str]:
    if state.keys() == expansion.fills.keys():
        return
    unfilled = [k for k in state if k not in expansion.fills and not k.endswith("_extra_state")]
    gone = [k for k in expansion.fills if k not in state]
    if unfilled:
        yield f"no step of the plan fills {listing(unfilled)}"
    if gone:
        yield f"the model no longer has {listing(gone)}"


def _meta(seen: Survey) -> Iterator[str]:
    left = {k for k, t in seen.tensors.items() if t.is_meta}
    shown = seen.hidden.values() if seen.plain else (t for m in seen.modules for _, t in slots_in(m))
    if any(tensor.is_meta for tensor in shown):
        model = seen.model
        left |= {k for k, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta}
    if left:
        yield f"still on the meta device: {listing(sorted(left))}"


def _moved(state: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> Iterator[str]:
    if not all(map(is_, map(state.get, into), into.values())):
        other = [key for key, tensor in into.items() if state.get(key) is not tensor]
        yield f"{listing(other)} became other tensors than those that are to be filled"


def _ties(state: Mapping[str, Tensor], ties: Sequence[Sequence[str]]) -> Iterator[str]:
    for group in ties:
        tensors = [state[k] for k in group if k in state]
        if len({_memory(t) for t in tensors}) > 1:
            yield f"{listing(group)} were one tensor and are not any more"


def _memory(tensor: Tensor) -> tuple[object, ...]:
    if tensor.is_meta or tensor.numel() == 0:
        return ()
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _own(key: str, fill: Fill, state: Mapping[str, Tensor], before: Before | None) -> Iterator[str]:
    """What is wrong with a key that is not loaded."""
    if fill.kind == "tie":
        if fill.tied_to not in state or _memory(state[key]) != _memory(state[fill.tied_to]):
            yield f"{quoted(key)} is not the same tensor as {quoted(fill.tied_to)}"
    elif before is not None:
        old = before(key)
        if old is not None and not same_bits(state[key].detach(), old):
            yield f"{quoted(key)} was to be kept and has changed"
