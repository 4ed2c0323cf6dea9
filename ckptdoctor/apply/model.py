"""Writing a plan into a live model, in one transaction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ckptdoctor.apply import live as place
from ckptdoctor.apply.derived import derived_value
from ckptdoctor.apply.materialise import materialise
from ckptdoctor.apply.metadata import metadata_for
from ckptdoctor.apply.staging import Expansion, OnTensor, Reader, stage
from ckptdoctor.apply.ties import check_copies, check_ties
from ckptdoctor.apply.transaction import Transaction
from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Before = Callable[[str], "Tensor | None"]  # model key -> its value before the load
Check = Callable[[Before], None]


def run_on_model(
    expansion: Expansion,
    reader: Reader,
    model: nn.Module,
    *,
    check: Check,
    device: torch.device | str | None = None,
    source_versions: Mapping[str, int] | None = None,
    on_tensor: OnTensor | None = None,
) -> None:
    """Fill ``model`` as ``expansion`` says, run ``check``, and undo all of it if anything raises.

    Everything is read, transformed and cast before the first write. The write itself is the model's own
    strict ``load_state_dict``, so its hooks run and parameters stay the same objects (an optimizer made
    earlier keeps working). Tensors on meta are created on ``device`` (default CPU).

    Raises :class:`ApplyError`; ``check`` raises what it likes. The model is then as it was.
    """
    state = place.live_state(model)
    live = place.tensors_of(state)
    expansion_keys_only = {k: t for k, t in live.items() if k in expansion.fills or not _is_extra(k)}
    place.check_keys(expansion, expansion_keys_only)
    place.check_device(live, device)
    place.check_meta(model, expansion, live)
    staged = stage(expansion, reader, place.wants(live, device), on_tensor)
    _fill_derived(expansion, live, staged, device)
    check_ties(expansion, _ties(live), staged)
    check_copies(expansion, reader)
    values = _full(expansion, state, staged)
    values._metadata = metadata_for(expansion, model, source_versions or {})  # type: ignore[attr-defined]
    with Transaction(model) as transaction:
        before = {key: transaction.before(tensor) for key, tensor in live.items()}
        materialise(model, live, values, transaction)
        _load(model, values)
        check(before.get)


def _is_extra(key: str) -> bool:
    return key.rpartition(".")[2] == "_extra_state"


def _fill_derived(
    expansion: Expansion,
    live: Mapping[str, Tensor],
    staged: dict[str, Tensor],
    device: torch.device | str | None,
) -> None:
    """Counters that are kept but on meta start at their known value."""
    for key, fill in expansion.fills.items():
        if fill.kind in ("keep", "reinit") and live[key].is_meta:
            value = derived_value(key, tuple(live[key].shape))
            if value is not None:
                staged[key] = value.to(device or "cpu", live[key].dtype)


def _ties(live: Mapping[str, Tensor]) -> list[list[str]]:
    """Keys grouped by the tensor object that they name."""
    groups: dict[int, list[str]] = {}
    for key, tensor in live.items():
        groups.setdefault(id(tensor), []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def _full(
    expansion: Expansion, state: Mapping[str, Any], staged: Mapping[str, Tensor]
) -> OrderedDict[str, Any]:
    """A complete state dict in the model's order: staged values, what is kept, ties, extra state."""
    values: OrderedDict[str, Any] = OrderedDict()
    for key, now in state.items():
        fill = expansion.fills.get(key)
        if fill is not None and fill.kind == "tie":
            values[key] = _tied(key, expansion, state, staged)
        elif key in staged:
            values[key] = staged[key]
        else:
            values[key] = now.detach() if hasattr(now, "detach") else now
    return values


def _tied(key: str, expansion: Expansion, state: Mapping[str, Any], staged: Mapping[str, Tensor]) -> Any:
    seen = {key}
    while expansion.fills[key].kind == "tie":
        key = expansion.fills[key].tied_to
        if key in seen or key not in expansion.fills:
            raise ApplyError(f"the tie of `{printable(key)}` leads to no tensor of the model")
        seen.add(key)
    return staged[key] if key in staged else state[key].detach()


def _load(model: nn.Module, values: OrderedDict[str, Any]) -> None:
    try:
        model.load_state_dict(values, strict=True)
    except ApplyError:
        raise
    except Exception as error:
        raise ApplyError(
            f"the model's own load_state_dict refused the repaired state dict; the model is unchanged. "
            f"{type(error).__name__}: {printable(str(error))}"
        ) from error
