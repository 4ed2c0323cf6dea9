"""Writing a plan into a live model, all or nothing, without a second copy of the weights.

Values stay where the reader has them (a mapped file, usually) until everything is proved: read, summed,
transformed, compared. Then each is copied into its parameter, and nothing in that last part can fail.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ckptdoctor.apply import live as place
from ckptdoctor.apply.commit import Pending, commit
from ckptdoctor.apply.derived import derived_value
from ckptdoctor.apply.direct import Places, places_in
from ckptdoctor.apply.materialise import materialise
from ckptdoctor.apply.metadata import metadata_for
from ckptdoctor.apply.reading import made_values
from ckptdoctor.apply.staging import Expansion, OnTensor, Reader
from ckptdoctor.apply.ties import check_copies, check_ties
from ckptdoctor.apply.transaction import Transaction, uninterrupted
from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable
from ckptdoctor.targets.survey import Survey, survey

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Before = Callable[[str], "Tensor | None"]  # model key -> its value before the load
Check = Callable[[Before, Before, Mapping[str, "Tensor"]], None]


def run_on_model(
    expansion: Expansion,
    reader: Reader,
    model: nn.Module,
    *,
    check: Check,
    runs_code: bool = True,
    ahead: bool = False,
    compare: bool = True,
    device: torch.device | str | None = None,
    source_versions: Mapping[str, int] | None = None,
    on_tensor: OnTensor | None = None,
    found: Survey | None = None,
) -> None:
    """Fill ``model`` as ``expansion`` says, run ``check``, and undo all of it if anything raises.

    Parameters stay the same objects, so an optimizer made earlier keeps working. Modules with code of their
    own for loading run it, with their own keys and before ``check``; for them alone a copy of the old
    values is kept. ``check(before, pending, into)`` gets two functions: a key's value before the load (None
    where it was not kept), and the value that is going to be written after the check (None for what is
    written already); and the tensors that no code of the model writes to. ``runs_code`` says that the check
    may run code of the model or of the caller. ``ahead`` writes everything before the check, which may then
    run the model, at the price of a copy of all old values. With ``compare`` each tensor is compared after
    it was written. Tensors on meta are created on ``device`` (default CPU); they take the reader's own
    memory where it ``lends`` it. ``found`` is the model as it was walked just now.

    Raises :class:`ApplyError`; ``check`` raises what it likes. The model is then as it was.
    """
    found = survey(model) if found is None else found
    live = found.tensors
    place.check_keys(expansion, live)
    place.check_device(live, device)
    place.check_meta(found, expansion)
    places = places_in(found)
    values, pending = made_values(expansion, reader, places, found, device, on_tensor)
    _fill_derived(expansion, live, values, device)
    check_ties(expansion, _ties(found), _Cast(values, pending))
    check_copies(expansion, reader)
    full = _full(expansion, found, values, pending, places)
    unchanged: Callable[[], None] = getattr(reader, "unchanged", lambda: None)
    alone = found.plain and not (places.own or ahead or runs_code)  # nobody else touches the model
    written = None if ahead else places.owned_tensors()
    with Transaction(() if alone else found.modules, written) as transaction:
        replaced = materialise(found, full, transaction)
        into = {k: replaced.get(id(t), t) for k, t in places.direct.items()} if replaced else places.direct
        if places.own:
            _load(places, full, metadata_for(expansion, found.metadata, source_versions or {}))
        if ahead:
            commit(pending, compare=compare, unchanged=unchanged)
            pending = Pending()
        check(lambda key: transaction.before(live.get(key)), pending.get, into)
        unchanged()
        if not pending.tensors:  # nothing is left to be written
            transaction.commit()
            return
        with uninterrupted():
            transaction.commit()
            commit(pending, compare=compare, unchanged=unchanged)


class _Cast(Mapping[str, "Tensor"]):
    """Values as the model will have them."""

    def __init__(self, values: Mapping[str, Tensor], pending: Pending) -> None:
        self._values, self._pending = values, pending

    def __getitem__(self, key: str) -> Tensor:
        cast = self._pending.get(key)
        return self._values[key] if cast is None else cast

    def __iter__(self) -> Any:
        yield from (*self._values, *self._pending.values)

    def __len__(self) -> int:
        return len(self._values) + len(self._pending.values)


def _fill_derived(
    expansion: Expansion,
    live: Mapping[str, Tensor],
    values: dict[str, Tensor],
    device: torch.device | str | None,
) -> None:
    """Counters that are kept but on meta start at their known value."""
    for key, fill in expansion.fills.items():
        if fill.kind in ("keep", "reinit") and live[key].is_meta:
            value = derived_value(key, tuple(live[key].shape))
            if value is not None:
                values[key] = value.to(device or "cpu", live[key].dtype)


def _ties(found: Survey) -> list[list[str]]:
    """Keys grouped by the tensor object that they name."""
    if not found.columns.shared:
        return []
    groups: dict[int, list[str]] = {}
    for key, tensor in found.tensors.items():
        groups.setdefault(id(tensor), []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def _full(
    expansion: Expansion,
    found: Survey,
    values: Mapping[str, Tensor],
    pending: Pending,
    places: Places,
) -> dict[str, Any]:
    """A value for each key but the pending ones: made, kept, tied, extra state."""
    full: dict[str, Any] = dict(values)
    for key, now in found.state.items() if len(full) < len(found.state) else ():
        if key in full or (key in pending.values and not places.own):
            continue
        fill = expansion.fills.get(key)
        source = _anchor(key, expansion) if fill is not None and fill.kind == "tie" else key
        if source in values:
            full[key] = values[source]
        elif source in pending.values:
            if key not in places.direct:  # tied to a plain tensor, but loaded by code of its own
                full[key] = pending.cast(source)
        else:
            now = found.state[source]
            full[key] = now.detach() if hasattr(now, "detach") else now
    return full


def _anchor(key: str, expansion: Expansion) -> str:
    seen = {key}
    while expansion.fills[key].kind == "tie":
        key = expansion.fills[key].tied_to
        if key in seen or key not in expansion.fills:
            raise ApplyError(f"the tie of `{printable(key)}` leads to no tensor of the model")
        seen.add(key)
    return key


def _load(places: Places, full: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Call each module that has code of its own with its own keys."""
    from torch import nn

    for path, module in places.own.items():
        dot = len(path) + 1 if path else 0
        values: OrderedDict[str, Any] = OrderedDict()
        for key in places.keys.get(path, ()):
            values[key[dot:]] = full[key]
        vars(values)["_metadata"] = _below(metadata, path)
        try:
            if path:
                nn.Module.load_state_dict(module, values, strict=True)  # as its parent would: no override
            else:
                module.load_state_dict(values, strict=True)
        except ApplyError:
            raise
        except Exception as error:
            raise ApplyError(
                f"the model's own load_state_dict refused the repaired state dict; the model is unchanged. "
                f"{type(error).__name__}: {printable(str(error))}"
            ) from error


def _below(metadata: Mapping[str, Any], path: str) -> OrderedDict[str, Any]:
    if not path:
        return OrderedDict(metadata)
    dot = f"{path}."
    found = ((k[len(dot) :], v) for k, v in metadata.items() if k == path or k.startswith(dot))
    return OrderedDict(found)
