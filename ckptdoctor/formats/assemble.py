"""From an unpickled object and a table of storages to an `Archive`. Common to all pickled formats."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckptdoctor.formats.base import Archive, Format, Recipe, StateDict, StorageRef
from ckptdoctor.formats.deferred import Content
from ckptdoctor.formats.facts import facts_inside
from ckptdoctor.formats.globals import is_dangerous, is_harmless
from ckptdoctor.formats.harvest import Slots, harvest
from ckptdoctor.formats.inert import OrderedMapping, TensorRecord, TensorRows
from ckptdoctor.formats.lazy import LazySpecs, bytes_of, devices_of, sizes_of
from ckptdoctor.formats.summaries import words
from ckptdoctor.formats.unpickle import Names
from ckptdoctor.formats.views import Views, element_size
from ckptdoctor.formats.walk import Place, Walk, is_container, is_extra
from ckptdoctor.formats.words import show
from ckptdoctor.trees import ParamTree, TensorSpec

if TYPE_CHECKING:
    from ckptdoctor.diagnostics import Diagnostic

BLOAT_FACTOR, BLOAT_BYTES = 2, 64 * 1024
MOST_STATE_DICTS = 10_000


def assemble(
    root: Any,
    names: Names,
    storages: Mapping[str, StorageRef],
    *,
    path: str,
    format: Format,
    description: str,
    size: int,
    hints: Mapping[str, str],
    slots: Slots | None = None,
    expected: frozenset[tuple[str, str]] = frozenset(),
) -> Archive:
    """Find and check everything in `root`; raises CorruptCheckpointError naming the key that is wrong.

    `slots` are the parameters and buffers of scripted classes; `expected` are globals that this format
    itself writes.
    """
    named = names.made.keys() - expected
    walk = Walk(root, path)
    sizes = sizes_of(storages)
    views = Views(path, sizes)
    state_dicts = tuple(_state_dict(place, views, slots) for place in walk.found[:MOST_STATE_DICTS])
    tensors = walk.tensors + isinstance(root, TensorRecord)
    rest = walk.rest() if is_container(root) else {"(the file)": words(root)}
    if len(walk.found) > MOST_STATE_DICTS:
        rest["(more)"] = f"{len(walk.found) - MOST_STATE_DICTS} more mappings of tensors, not listed"
    unknown = tuple(sorted(f"{m}.{n}" for m, n in named if not is_harmless(m, n)))
    archive = Archive(
        path=path,
        format=format,
        description=description,
        size=size,
        state_dicts=state_dicts,
        storages=storages,
        rest=rest,
        tensors=tensors,
        globals=names.listed(),
        unknown_globals=unknown,
        hints={**hints, **envelope_hints(root)},
        facts=facts_inside(iter(walk.places.values())),
        files=(path,),
        content=_content(walk, state_dicts, sizes),
    )
    modules = {p.path: p.node.what for p in walk.found if p.kind == "module"}
    if format == "torchscript":
        modules = {}
    found = diagnostics(archive, named, modules)
    return replace(archive, diagnostics=found) if found else archive


def _content(walk: Walk, state_dicts: tuple[StateDict, ...], sizes: Mapping[str, int]) -> Content:
    """The values of the file; where they are one state dict, no records are kept for it."""
    if len(walk.places) == 1 and walk.found and isinstance(state_dicts[0].tree.specs, LazySpecs):
        return Content.of_specs(state_dicts[0].tree.specs, walk.file)
    return Content(walk.root, walk.file, sizes)


def _state_dict(place: Place, views: Views, slots: Slots | None) -> StateDict:
    specs: dict[str, TensorSpec] = {}
    recipes: dict[str, Recipe] = {}
    if place.kind == "module":
        for entry in harvest(place.node, views.path, slots):
            specs[entry.key] = views.spec(entry.record, entry.key, entry.kind)
            if entry.record.layout != "strided":
                _add_recipe(recipes, views, entry.key, entry.record)
        return StateDict(place.path, ParamTree(specs), _note(place), recipes)
    node = place.node
    if place.pure:
        plain = views.row_specs(node) if type(node) is TensorRows else views.plain_specs(node)
        if type(node) is TensorRows:
            node = node.records() if plain is None else OrderedMapping.of_state(node.state)
        if plain is not None:
            return StateDict(place.path, ParamTree(plain, versions=_versions(node)), _note(place))
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    extra: dict[str, str] = {}
    spec = views.spec
    for key, value in entries:
        name = key if isinstance(key, str) else str(key)
        if type(value) is TensorRecord:
            specs[name] = spec(value, name)
            if value.layout != "strided":
                _add_recipe(recipes, views, name, value)
        elif isinstance(key, str) and is_extra(key):
            extra[name] = words(value)
    return StateDict(
        place.path, ParamTree(specs, versions=_versions(node), extra=extra), _note(place), recipes
    )


def _add_recipe(recipes: dict[str, Recipe], views: Views, key: str, record: TensorRecord) -> None:
    recipe = views.recipe(record, key)
    if recipe is not None:
        recipes[key] = recipe


def _note(place: Place) -> str:
    notes = []
    if place.kind == "module":
        notes.append(f"harvested from a pickled {show(place.node.what, 80)}")
    if place.kind == "list":
        notes.append("a list of tensors, keyed by position")
    elif place.kind == "mapping" and not place.pure and not all(isinstance(k, str) for k in place.node):
        notes.append("some keys are no strings")
    if place.aliases:
        notes.append("also at " + ", ".join(show(a, 80) for a in place.aliases))
    return "; ".join(notes)


def _versions(node: Any) -> dict[str, int]:
    """``_metadata`` of a state dict: module path -> the version of its class's format."""
    metadata = node.attribute("_metadata") if isinstance(node, OrderedMapping) else None
    if not isinstance(metadata, dict):
        return {}
    return {
        path: entry["version"]
        for path, entry in metadata.items()
        if isinstance(path, str)
        and isinstance(entry, dict)
        and type(entry.get("version")) is int
        and abs(entry["version"]) < 2**31
    }


def envelope_hints(root: Any) -> dict[str, str]:
    """What common training frameworks write beside the state dict."""
    if not isinstance(root, dict):
        return {}
    hints = {}
    for key, hint in (("pytorch-lightning_version", "lightning"), ("torch_version", "torch")):
        value = root.get(key)
        if isinstance(value, str):
            hints[hint] = show(value, 40)
    return hints


def diagnostics(
    archive: Archive, named: Set[tuple[str, str]], modules: Mapping[str, str]
) -> tuple[Diagnostic, ...]:
    """Everything unusual that the headers show."""
    dangerous = sorted(f"{m}.{n}" for m, n in named if is_dangerous(m, n))
    unknown = [n for n in archive.unknown_globals if n not in set(dangerous)]
    found = []
    if dangerous or unknown or modules:  # their words are imported where there is something to say
        from ckptdoctor.formats import findings

        if dangerous:
            found.append(findings.dangerous_globals(archive.path, dangerous))
        if unknown:
            found.append(findings.unknown_globals(archive.path, unknown))
        if modules:
            found.append(findings.pickled_module(archive.path, modules))
    return (*found, *storage_findings(archive))


def storage_findings(archive: Archive) -> list[Diagnostic]:
    """CKD403 and CKD404, which every format can have."""
    devices = devices_of(archive.storages)
    del devices["cpu"]
    stored, used, keys = bloat(archive)
    bloated = stored - used > BLOAT_BYTES and stored > BLOAT_FACTOR * used
    found = []
    if devices or bloated:
        from ckptdoctor.formats import findings

        if devices:
            found.append(findings.foreign_devices(archive.path, dict(devices.most_common())))
        if bloated:
            found.append(findings.storage_bloat(archive.path, stored, used, keys))
    return found


def bloat(archive: Archive) -> tuple[int, int, list[str]]:
    """Bytes of the storages in use, bytes that their tensors show, keys that show little of theirs."""
    shown: dict[str, dict[tuple[int, tuple[int, ...]], int]] = {}
    keys: dict[str, list[str]] = {}
    sizes: dict[tuple[tuple[int, ...], str], int] = {}
    for state_dict in archive.state_dicts:
        specs = state_dict.tree.specs
        if isinstance(specs, LazySpecs) and all(_whole(kind) for kind in specs.kinds):
            continue
        for key, spec in specs.items():
            kind = (spec.shape, spec.dtype)
            size = sizes.get(kind)
            if size is None:
                size = sizes[kind] = spec.numel * element_size(spec.dtype)
            if spec.storage and size < spec.storage_bytes:
                shown.setdefault(spec.storage, {})[spec.offset, spec.shape] = size
                keys.setdefault(spec.storage, []).append(key)
    loose = {s: archive.storages[s].nbytes - sum(parts.values()) for s, parts in shown.items()}
    stored = bytes_of(archive.storages)
    hidden = sum(n for n in loose.values() if n > 0)
    return stored, stored - hidden, [k for s, n in loose.items() if n > BLOAT_BYTES for k in keys[s]]


def _whole(spec: TensorSpec) -> bool:
    return spec.numel * element_size(spec.dtype) >= spec.storage_bytes
