"""The independent check: re-read the file, replay the plan, compare every bit.

Nothing here is shared with ``apply`` but the ops themselves, which have their own laws.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ckptdoctor.casts import CAST_CLASSES, CastClass
from ckptdoctor.errors import CkptDoctorError, VerifyError
from ckptdoctor.keys import printable
from ckptdoctor.ops import parse_chain
from ckptdoctor.ops.bits import same_bits
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import listing
from ckptdoctor.verify.casting import classify

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ckptdoctor.trees import ParamTree

HARMLESS: tuple[CastClass, ...] = ("lossless", "rounding")


class Fills(Protocol):
    """A plan written out, key by key."""

    @property
    def fills(self) -> Mapping[str, Fill]:
        """Model key -> how it is filled."""


Reader = Callable[[str], "Tensor"]
Before = Callable[[str], "Tensor | None"]


def verify_model(
    expansion: Fills,
    reader: Reader,
    model: nn.Module,
    *,
    ties: Sequence[Sequence[str]] = (),
    before: Before | None = None,
    accept: Collection[str] = (),
) -> dict[str, tuple[str, CastClass]]:
    """Check a model that a plan has filled; returns ``{key: (dtype in the file, class of the cast)}``.

    ``reader`` should be a newly opened one. ``ties`` are the groups of keys that were one tensor before,
    ``before`` gives a key's value before the load, ``accept`` names cast classes that a person accepted.

    Raises :class:`VerifyError` with everything that is wrong: a key too many or too few, a tensor on meta,
    a value that is not what the plan makes of the file, a broken tie, a changed value that was to be kept,
    a cast that lost values.
    """
    state = _state(model)
    problems = [*_keys(expansion, state), *_meta(model, state), *_ties(state, ties)]
    casts: dict[str, tuple[str, CastClass]] = {}
    for key, fill in expansion.fills.items():
        if key in state and not state[key].is_meta:
            problems += _one(key, fill, reader, state, before, casts)
    problems += _lossy_casts(casts, accept)
    if problems:
        raise VerifyError(_words(problems, "the model is as it was before"))
    return casts


def verify_values(
    expansion: Fills,
    reader: Reader,
    written: Reader,
    tree: ParamTree,
    target: ParamTree,
    accept: Collection[str] = (),
) -> dict[str, tuple[str, CastClass]]:
    """Check a file that a plan has written, opened anew: ``tree`` is its tree, ``written`` reads its tensors.

    ``target`` is the model's tree: the file must have exactly its keys, shapes and dtypes.
    Raises :class:`VerifyError`.
    """
    problems = [*_specs(tree, target)]
    casts: dict[str, tuple[str, CastClass]] = {}
    for key, fill in expansion.fills.items():
        if fill.kind == "load" and key in tree:
            problems += _replayed(key, fill, reader, written(key), casts)
        elif fill.kind == "tie" and key in tree:
            problems += _equal(key, fill.tied_to, written, tree)
    problems += _lossy_casts(casts, accept)
    if problems:
        raise VerifyError(_words(problems, "no file was written"))
    return casts


def _state(model: nn.Module) -> dict[str, Tensor]:
    import torch

    try:
        state: Mapping[str, Any] = model.state_dict(keep_vars=True)
    except TypeError:
        state = model.state_dict()
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}


def _keys(expansion: Fills, state: Mapping[str, Tensor]) -> Iterator[str]:
    unfilled = [k for k in state if k not in expansion.fills and not k.endswith("_extra_state")]
    gone = [k for k in expansion.fills if k not in state]
    if unfilled:
        yield f"no step of the plan fills {listing(unfilled)}"
    if gone:
        yield f"the model no longer has {listing(gone)}"


def _meta(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[str]:
    left = {k for k, t in state.items() if t.is_meta}
    left |= {k for k, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta}
    if left:
        yield f"still on the meta device: {listing(sorted(left))}"


def _ties(state: Mapping[str, Tensor], ties: Sequence[Sequence[str]]) -> Iterator[str]:
    for group in ties:
        tensors = [state[k] for k in group if k in state]
        if len({_memory(t) for t in tensors}) > 1:
            yield f"{listing(group)} were one tensor and are not any more"


def _memory(tensor: Tensor) -> tuple[object, ...]:
    if tensor.is_meta or tensor.numel() == 0:
        return ()
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _one(
    key: str,
    fill: Fill,
    reader: Reader,
    state: Mapping[str, Tensor],
    before: Before | None,
    casts: dict[str, tuple[str, CastClass]],
) -> Iterator[str]:
    if fill.kind == "load":
        yield from _replayed(key, fill, reader, state[key].detach(), casts)
    elif fill.kind == "tie":
        if fill.tied_to not in state or _memory(state[key]) != _memory(state[fill.tied_to]):
            yield f"{_q(key)} is not the same tensor as {_q(fill.tied_to)}"
    elif before is not None:
        old = before(key)
        if old is not None and not same_bits(state[key].detach(), old):
            yield f"{_q(key)} was to be kept and has changed"


def _replayed(
    key: str, fill: Fill, reader: Reader, found: Tensor, casts: dict[str, tuple[str, CastClass]]
) -> Iterator[str]:
    made = _made(key, fill, reader)
    due = (
        made.to(found.device).to(found.dtype)
        if not made.is_complex() or found.is_complex()
        else made.real.to(found)
    )
    if not same_bits(found, due):
        chain = str(parse_chain(fill.ops))
        yield f"{_q(key)} is not `{chain}` of {listing(fill.sources)}: {_difference(found, due)}"
        return
    casts[key] = (str(made.dtype).removeprefix("torch."), classify(made, found))


def _made(key: str, fill: Fill, reader: Reader) -> Tensor:
    try:
        return parse_chain(fill.ops).run([reader(source).detach() for source in fill.sources])
    except CkptDoctorError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {printable(str(error))}"
        raise VerifyError(f"{_q(key)} could not be checked, {listing(fill.sources)} gave {what}") from error


def _difference(found: Tensor, due: Tensor) -> str:
    if found.shape != due.shape:
        return f"shape {list(found.shape)}, due {list(due.shape)}"
    other = int((found != due).sum())
    return f"{other} of {found.numel()} values differ" if other else "only signs of zero or NaN bits differ"


def _equal(key: str, other: str, written: Reader, tree: ParamTree) -> Iterator[str]:
    if other not in tree or not same_bits(written(key), written(other)):
        yield f"{_q(key)} and {_q(other)} are one tensor in the model, two in the file"


def _specs(tree: ParamTree, target: ParamTree) -> Iterator[str]:
    missing = [k for k in target.specs if k not in tree]
    extra = [k for k in tree.specs if k not in target]
    if missing:
        yield f"the file lacks {listing(missing)}"
    if extra:
        yield f"the file has {listing(extra)}, which the model has not"
    for key, spec in target.specs.items():
        found = tree.specs.get(key)
        if found is not None and (found.shape, found.dtype) != (spec.shape, spec.dtype):
            yield f"{_q(key)} is {found.dtype}{list(found.shape)}, due {spec.dtype}{list(spec.shape)}"


def _lossy_casts(casts: Mapping[str, tuple[str, CastClass]], accept: Collection[str]) -> Iterator[str]:
    why = {
        "range": "values do not fit (a finite value became infinite, or small ones became 0)",
        "truncation": "fractions or imaginary parts were cut off",
        "payload": "8-bit or packed codes mean nothing without their scales",
    }
    for name in CAST_CLASSES:
        if name not in HARMLESS and name not in accept:
            keys = [key for key, (_, found) in casts.items() if found == name]
            if keys:
                yield f"the cast of {listing(keys)} loses values: {why[name]}"


def _words(problems: Sequence[str], state: str) -> str:
    more = [f"... and {len(problems) - 8} more"] if len(problems) > 8 else []
    return "\n  ".join([f"verification failed; {state}:", *problems[:8], *more])


def _q(key: str) -> str:
    return f"`{printable(key)}`"
