"""The tensors of a new file, made as a plan says: plain, on the CPU, without a byte too many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ckptdoctor.apply.derived import derived_value
from ckptdoctor.apply.metadata import map_versions
from ckptdoctor.apply.staging import Expansion, OnTensor, Reader, Want, stage_one
from ckptdoctor.apply.ties import check_copies, check_ties
from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable
from ckptdoctor.receipt import listing

if TYPE_CHECKING:
    from torch import Tensor

    from ckptdoctor.trees import ParamTree

Initial = Callable[[str], Any]  # model key -> the model's own value; KeyError when it has none


def file_values(
    expansion: Expansion,
    reader: Reader,
    target: ParamTree,
    *,
    initial: Initial | None = None,
    source_versions: Mapping[str, int] | None = None,
    on_tensor: OnTensor | None = None,
) -> OrderedDict[str, Any]:
    """The state dict to write: every key of ``target``, in its order, in its shapes and dtypes.

    ``initial`` gives the values that the plan keeps from the model; without it only well-known counters can
    be kept. Tied keys are one tensor object. Raises :class:`ApplyError`.
    """
    _check_complete(expansion, target, initial)
    made: dict[str, Tensor] = {}
    for key, fill in expansion.fills.items():
        spec = target[key]
        if fill.kind == "load":
            made[key] = stage_one(key, fill, reader, Want(spec.shape, _dtype(spec.dtype)))
            if on_tensor is not None:
                on_tensor(key)
        elif fill.kind != "tie":
            made[key] = _own(key, target, initial)
    check_ties(expansion, target.ties, made)
    check_copies(expansion, reader)
    same = {key: group[0] for group in target.ties for key in group}
    values: OrderedDict[str, Any] = OrderedDict()
    for key in target.specs:
        anchor = _anchor(key, expansion)
        values[key] = made[same[anchor] if same.get(anchor) in made else anchor]
    for key in target.extra:
        values[key] = initial(key) if initial is not None else None
    if target.versions:
        metadata = map_versions(expansion, target.versions, source_versions or {})
        values._metadata = metadata  # type: ignore[attr-defined]
    return values


def _check_complete(expansion: Expansion, target: ParamTree, initial: Initial | None) -> None:
    missing = [key for key in target.specs if key not in expansion.fills]
    foreign = [key for key in expansion.fills if key not in target]
    if missing or foreign:
        raise ApplyError(f"the plan is not for this model: {listing(missing + foreign)}. Make a new plan")
    if target.extra and initial is None:
        raise ApplyError(
            f"the model has extra state that is no tensor: {listing(target.extra)}; its values come from the "
            "model itself. Give the model (`ckptdoctor repair MODEL CKPT -o OUT`)"
        )
    if initial is None:
        kept = [k for k, f in expansion.fills.items() if f.kind in ("keep", "reinit")]
        unknown = [k for k in kept if derived_value(k, target[k].shape) is None]
        if unknown:
            raise ApplyError(
                f"the plan keeps the model's own values for {listing(unknown)}, which no file holds. "
                "Give the model (`ckptdoctor repair MODEL CKPT -o OUT`), so that it is built and asked"
            )


def _own(key: str, target: ParamTree, initial: Initial | None) -> Tensor:
    import torch

    spec = target[key]
    value = initial(key) if initial is not None else derived_value(key, spec.shape)
    if not isinstance(value, torch.Tensor) or value.is_meta or tuple(value.shape) != spec.shape:
        raise ApplyError(f"the model gives no value for `{printable(key)}`, which the plan keeps from it")
    return value.detach().to("cpu", _dtype(spec.dtype)).clone(memory_format=torch.contiguous_format)


def _anchor(key: str, expansion: Expansion) -> str:
    seen = set()
    while expansion.fills[key].kind == "tie":
        seen.add(key)
        key = expansion.fills[key].tied_to
        if key in seen or key not in expansion.fills:
            raise ApplyError(f"the tie of `{printable(key)}` leads to no tensor of the model")
    return key


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
