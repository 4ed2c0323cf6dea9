"""Load and prove in one transaction: ``apply`` does, ``verify`` judges, the receipt records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from ckptdoctor.apply import Expansion, Reader, run_on_model
from ckptdoctor.casts import CastClass
from ckptdoctor.receipt import Action, Entry, Receipt
from ckptdoctor.verify import verify_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ckptdoctor.trees import ParamTree

_ACTIONS: dict[str, Action] = {"load": "loaded", "keep": "kept", "reinit": "reinitialised", "tie": "tied"}


def apply_to_model(
    expansion: Expansion,
    reader: Reader,
    model: nn.Module,
    target_tree: ParamTree,
    *,
    fresh: Callable[[], Reader] | None = None,
    device: torch.device | str | None = None,
    source_versions: Mapping[str, int] | None = None,
    accept: Collection[str] = (),
    on_tensor: Callable[[str], None] | None = None,
    source: str = "",
    state_dict: str = "",
    target: str = "",
) -> Receipt:
    """Fill a live model from a checkpoint and verify it; the model is untouched unless all of it holds.

    ``expansion`` is the plan key by key, ``reader`` gives the checkpoint's tensors, ``target_tree`` is the
    model's tree from before. ``fresh`` opens the file once more for the verification (default: ``reader``
    again). ``device`` says where tensors on meta are created; other models are filled where they are.
    ``source_versions`` is the checkpoint's ``_metadata``; ``accept`` names cast classes that a person
    accepted (``"range"``). ``source``, ``state_dict`` and ``target`` are words for the receipt.

    Raises :class:`~ckptdoctor.errors.ApplyError` or :class:`~ckptdoctor.errors.VerifyError`.
    """
    casts: dict[str, tuple[str, CastClass]] = {}

    def check(before: Callable[[str], Tensor | None]) -> None:
        again = fresh() if fresh is not None else reader
        found = verify_model(expansion, again, model, ties=target_tree.ties, before=before, accept=accept)
        casts.update(found)

    run_on_model(
        expansion,
        reader,
        model,
        check=check,
        device=device,
        source_versions=source_versions,
        on_tensor=on_tensor,
    )
    return Receipt(
        source=source,
        state_dict=state_dict,
        target=target,
        entries=_entries(expansion, target_tree, casts),
        unused=dict(expansion.unused),
    )


def _entries(
    expansion: Expansion, tree: ParamTree, casts: Mapping[str, tuple[str, CastClass]]
) -> tuple[Entry, ...]:
    entries = []
    for key, fill in expansion.fills.items():
        dtype_from, cast = casts.get(key, ("", "lossless"))
        spec = tree[key]
        sources = (fill.tied_to,) if fill.kind == "tie" else fill.sources
        ops = () if fill.kind == "tie" else fill.ops
        entries.append(
            Entry(key, _ACTIONS[fill.kind], sources, ops, spec.numel, dtype_from, spec.dtype, cast)
        )
    return tuple(entries)
