"""``_metadata`` of the repaired state dict: the version of each module that wrote its tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ckptdoctor.apply.staging import Expansion


def metadata_for(
    expansion: Expansion, own: Mapping[str, Any], source_versions: Mapping[str, int]
) -> OrderedDict[str, dict[str, Any]]:
    """``_metadata`` for a live model, whose ``state_dict()`` has this one; see :func:`map_versions`."""
    versions = {
        path: entry["version"] for path, entry in own.items() if isinstance(entry.get("version"), int)
    }
    mapped = map_versions(expansion, versions, source_versions)
    return OrderedDict((path, {**entry, **mapped.get(path, {})}) for path, entry in own.items())


def map_versions(
    expansion: Expansion, target_versions: Mapping[str, int], source_versions: Mapping[str, int]
) -> OrderedDict[str, dict[str, Any]]:
    """For each module of the model the version under which the checkpoint wrote its tensors.

    A module may convert old values when it sees an old version, so the writer's version is handed on when
    it is known and the same for all the module's tensors; else the model's own, which asks for nothing.
    """
    found: dict[str, set[int | None]] = {}
    for key, fill in expansion.fills.items():
        if fill.kind == "load":
            wrote = {source_versions.get(source.rpartition(".")[0]) for source in fill.sources}
            found.setdefault(key.rpartition(".")[0], set()).update(wrote)
    result: OrderedDict[str, dict[str, Any]] = OrderedDict()
    for path, own in target_versions.items():
        wrote = found.get(path, set())
        known = next(iter(wrote)) if len(wrote) == 1 else None
        result[path] = {"version": own if known is None else known}
    return result
