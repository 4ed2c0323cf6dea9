"""A plan is run: the readers that it needs, into a model or into a file, and its receipt."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckptdoctor.decisions import parse_decisions
from ckptdoctor.errors import ApplyError, StalePlanError
from ckptdoctor.keys import printable

if TYPE_CHECKING:
    import torch

    from ckptdoctor.formats.base import Archive, StateDict
    from ckptdoctor.plan import Expansion, Plan
    from ckptdoctor.receipt import Receipt
    from ckptdoctor.targets import Target
    from ckptdoctor.targets.survey import Survey
    from ckptdoctor.trees import ParamTree


def _chosen(plan: Plan, archive: Archive) -> StateDict:
    try:
        return archive[plan.source.state_dict]
    except KeyError as error:
        raise StalePlanError(f"{printable(archive.path)}: {error.args[0]}") from None


def into_model(
    plan: Plan,
    archive: Archive,
    model: torch.nn.Module,
    device: Any,
    materialise: bool = False,
    verify: bool = True,
    probe: Any = None,
    tree: ParamTree | None = None,
    expansion: Expansion | None = None,
    walked: Survey | None = None,
) -> Receipt:
    """Run the plan on a live model; arguments as for :func:`ckptdoctor.auto_load`.

    ``tree`` is the model's, where it was read just now from what was ``walked``, and ``expansion`` the plan
    worked out for it.
    """
    from ckptdoctor.formats.ahead import read_ahead
    from ckptdoctor.formats.tensors import model_reader
    from ckptdoctor.loading import apply_to_model
    from ckptdoctor.plan import expand
    from ckptdoctor.targets.module import tree_of, walk
    from ckptdoctor.verify.probe import live_probe

    chosen = _chosen(plan, archive)
    if tree is None or walked is None:
        walked = walk(model)
        tree = tree_of(walked)
    expansion = expand(plan, chosen.tree, tree) if expansion is None else expansion
    lasting = any(look.device.type == "meta" for look in walked.columns.few)
    reader = model_reader(archive, chosen, lasting=lasting, private=materialise, check_crc=verify)
    if verify or materialise or not lasting:  # else no byte is read
        read_ahead(archive.files)
    reader.prepare(source for fill in expansion.fills.values() for source in fill.sources)
    receipt = apply_to_model(
        expansion,
        reader,
        model,
        tree,
        fresh=reader.again,
        device=device,
        source_versions=chosen.tree.versions,
        accept=_accepted(plan),
        verify=verify,
        source=archive.path,
        state_dict=chosen.path,
        target=type(model).__name__,
        probe=live_probe(probe, model),
        found=walked,
    )
    return replace(receipt, warnings=plan.warning)


def into_file(
    plan: Plan,
    archive: Archive,
    target: Target,
    out: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60,
    live: Callable[[], Mapping[str, Any]] | None = None,
    probe: Any = None,
    max_shard_size: str | int | None = None,
    keep_envelope: bool = False,
    known: Expansion | None = None,
    **how: Any,
) -> Receipt:
    """Run the plan into a new file; arguments as for :func:`ckptdoctor.apply`.

    ``live`` gives the state dict of a model at hand; others are built when the plan keeps their values.
    ``known`` is the plan as it was worked out when it was made.
    """
    from ckptdoctor.apply.envelope import around, check_positions
    from ckptdoctor.formats.envelope import open_envelope
    from ckptdoctor.formats.tensors import model_reader
    from ckptdoctor.loading import apply_to_file, needs_model
    from ckptdoctor.plan import expand
    from ckptdoctor.verify.probe import file_probe
    from ckptdoctor.writers import size_of

    if probe is not None and live:
        raise ApplyError(
            "with out= a probe needs a model that can be built (model='model.py:name'), because a live one "
            "is not changed; or load into the live model, without out="
        )
    chosen = _chosen(plan, archive)
    expansion = expand(plan, chosen.tree, target.tree, known)
    envelope = open_envelope(archive, chosen) if keep_envelope else None
    if envelope is not None:
        check_positions(envelope, expansion, chosen.tree, target.tree)
    initial = None
    if keys := needs_model(expansion, target.tree):
        from ckptdoctor.targets.values import initial_values

        values = live() if live else initial_values(target.label, keys, kwargs=kwargs, timeout=timeout)
        initial = values.__getitem__
    reader = model_reader(archive, chosen, lasting=False, private=False, check_crc=True)
    receipt = apply_to_file(
        expansion,
        reader,
        out,
        target.tree,
        initial=initial,
        fresh=reader.again,
        source_versions=chosen.tree.versions,
        accept=_accepted(plan),
        max_shard_size=None if max_shard_size is None else size_of(max_shard_size),
        envelope=envelope,
        notes=around(archive, chosen, envelope),
        **how,
        source=archive.path,
        state_dict=chosen.path,
        target=target.label,
        probe=file_probe(probe, target, kwargs, timeout),
    )
    return replace(receipt, warnings=plan.warning)


def _accepted(plan: Plan) -> tuple[str, ...]:
    return tuple(d.value for d in parse_decisions(plan.decision) if d.kind == "accept")
