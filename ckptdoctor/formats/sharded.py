"""Shard indexes: ``model.safetensors.index.json`` and ``pytorch_model.bin.index.json``.

The index is a promise (key -> shard); every promise is checked against the shards' own headers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats.assemble import storage_findings
from ckptdoctor.formats.base import Archive, Recipe, StateDict, StorageRef
from ckptdoctor.formats.lazy import over
from ckptdoctor.formats.sniff import foreign
from ckptdoctor.formats.source import FileSource, corrupt
from ckptdoctor.formats.words import listing, plural, show
from ckptdoctor.trees import ParamTree, TensorSpec

LARGEST_INDEX = 1 << 28
ADVICE = "get the whole folder again, index and shards of the same release"


def open_index(source: FileSource) -> Archive:
    """Read an index and the headers of all its shards.

    Raises CorruptCheckpointError for missing shards, for keys that are missing, unlisted or twice, and
    for shard names that lead out of the folder; UnknownFormatError for any other JSON.
    """
    shards = _shard_names(source.path, _weight_map(source))
    folder = os.path.dirname(os.path.abspath(source.path))
    paths = {name: _path_of(source.path, folder, name) for name in shards}
    missing = [name for name, path in paths.items() if not os.path.isfile(path)]
    if missing:
        raise corrupt(
            source.path,
            f"{plural(len(missing), 'shard')} of {len(paths)} missing beside it: {listing(missing)}",
            "download the missing files into the same folder",
        )
    opened = {name: _open_shard(path) for name, path in paths.items()}
    return _combined(source, shards, opened)


def _weight_map(source: FileSource) -> dict[str, str]:
    content = _json(source)
    found = content.get("weight_map") if isinstance(content, dict) else None
    if found is None:
        raise _other_json(source.path, content)
    if not isinstance(found, dict) or not found:
        raise corrupt(source.path, "its weight_map is no mapping, or empty", ADVICE)
    for key, shard in found.items():
        if not isinstance(shard, str) or not shard:
            raise corrupt(source.path, f"key {show(key)!r} names no shard", ADVICE)
    return found


class _TwiceError(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _TwiceError(key)
        made[key] = value
    return made


def _json(source: FileSource) -> Any:
    if source.size > LARGEST_INDEX:
        raise foreign(source.path, "a JSON file too large to be a shard index", "give the checkpoint itself")
    raw = source.exactly(0, source.size, "the index")
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once)
    except _TwiceError as error:
        raise corrupt(source.path, f"it names {show(error)!r} twice", ADVICE) from None
    except (ValueError, RecursionError):
        if source.path.endswith(".index.json"):
            raise corrupt(source.path, "a shard index that is no complete JSON", ADVICE) from None
        raise foreign(
            source.path, "a text file that begins like JSON", "give the checkpoint itself"
        ) from None


def _other_json(path: str, content: Any) -> Exception:
    if isinstance(content, dict) and ("architectures" in content or "model_type" in content):
        return foreign(path, "a model's configuration", "the weights are another file in the same folder")
    if isinstance(content, dict) and ("error" in content or "message" in content):
        text = show(content.get("error") or content.get("message"), 80)
        return foreign(path, f"a server's answer, {text!r}", "download the checkpoint again")
    return foreign(path, "a JSON file without a weight_map", "give the checkpoint or its shard index")


def _shard_names(path: str, weight_map: Mapping[str, str]) -> dict[str, list[str]]:
    """Shard -> its keys, shards in the order of their names, which number them."""
    shards: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        shards.setdefault(name, []).append(key)
    return dict(sorted(shards.items()))


def _path_of(path: str, folder: str, name: str) -> str:
    """Where the shard is; only plain names and subfolders of the index's own folder are allowed."""
    parts = name.replace("\\", "/").split("/")
    if os.path.isabs(name) or ":" in parts[0] or "\0" in name or any(p in ("", ".", "..") for p in parts):
        raise _leads_out(path, name)
    shard = os.path.join(folder, *parts)
    inside = os.path.realpath(folder)
    real = os.path.realpath(shard)
    if os.path.commonpath([inside, real]) != inside and not _in_hub_cache(inside, real):
        raise _leads_out(path, name)
    return shard


def _leads_out(path: str, name: str) -> CorruptCheckpointError:
    return corrupt(
        path,
        f"shard {show(name)!r} leads out of the folder of the index",
        "put the shards beside the index and name them plainly",
    )


def _in_hub_cache(folder: str, real: str) -> bool:
    """The Hugging Face cache: ``snapshots/<revision>/x`` are links to ``blobs/<hash>`` two levels up."""
    repo, middle = os.path.split(os.path.dirname(folder))
    return middle == "snapshots" and os.path.dirname(real) == os.path.join(repo, "blobs")


def _open_shard(path: str) -> Archive:
    from ckptdoctor.formats import open_file

    return open_file(path, shard=True)


def refuse_index(source: FileSource) -> NoReturn:
    """For a shard that is an index itself, or other JSON. Raises CorruptCheckpointError or what it is."""
    _weight_map(source)
    raise corrupt(source.path, "a shard that is an index itself", ADVICE)


def _only_state_dict(archive: Archive) -> StateDict:
    if len(archive.state_dicts) == 1:
        return archive.state_dicts[0]
    at_root = [s for s in archive.state_dicts if not s.path]
    if len(at_root) != 1:
        raise corrupt(archive.path, f"a shard with {len(archive.state_dicts)} state dicts in it", ADVICE)
    return at_root[0]


def _combined(source: FileSource, shards: dict[str, list[str]], opened: dict[str, Archive]) -> Archive:
    """One state dict over all shards; storage ids get the shard's name in front."""
    specs: dict[str, TensorSpec] = {}
    storages: dict[str, StorageRef] = {}
    recipes: dict[str, Recipe] = {}
    versions: dict[str, int] = {}
    extra: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name, archive in opened.items():
        part = _only_state_dict(archive)
        _check_keys(source.path, name, shards[name], part, owner)
        storages.update((f"{name}:{key}", ref) for key, ref in archive.storages.items())
        for key, spec in part.tree.specs.items():
            specs[key] = _renamed(spec, name)
        for key, recipe in part.recipes.items():
            recipes[key] = replace(recipe, parts={r: _renamed(s, name) for r, s in recipe.parts.items()})
        versions.update(part.tree.versions)
        extra.update(part.tree.extra)
    archives = list(opened.values())
    safe = archives[0].format == "safetensors"
    tree = ParamTree(
        specs, ordered=all(_only_state_dict(a).tree.ordered for a in archives), versions=versions, extra=extra
    )
    whole = Archive(
        path=source.path,
        format="safetensors-index" if safe else "torch-index",
        description=f"{'safetensors' if safe else 'torch'} in {plural(len(archives), 'shard')}",
        size=source.size + sum(a.size for a in archives),
        state_dicts=(StateDict("", tree, recipes=recipes),),
        storages=storages,
        rest={f"{n}: {p}": w for n, a in opened.items() for p, w in a.rest.items()},
        tensors=sum(a.tensors for a in archives),
        globals=tuple(sorted({g for a in archives for g in a.globals})),
        unknown_globals=tuple(sorted({g for a in archives for g in a.unknown_globals})),
        hints=archives[0].hints,
        files=(source.path, *(a.path for a in archives)),
        stamps={path: stamp for a in archives for path, stamp in a.stamps.items()},
    )
    inner = {
        (d.code, d.title): d for a in archives for d in a.diagnostics if d.code not in ("CKD403", "CKD404")
    }
    return replace(whole, diagnostics=(*inner.values(), *storage_findings(whole)))


def _renamed(spec: TensorSpec, shard: str) -> TensorSpec:
    return over(spec, f"{shard}:{spec.storage}") if spec.storage else spec


def _check_keys(path: str, name: str, promised: list[str], part: StateDict, owner: dict[str, str]) -> None:
    there = set(part.tree.specs) | set(part.tree.extra)
    gone = [k for k in promised if k not in there]
    if gone:
        raise corrupt(
            path, f"shard {show(name)!r} does not have {listing(gone)}, which the index promises", ADVICE
        )
    for key in part.tree.specs:
        if key in owner:
            raise corrupt(
                path, f"{show(key)!r} is in two shards, {show(owner[key])} and {show(name)}", ADVICE
            )
        owner[key] = name
    listed = set(promised)
    unlisted = [k for k in part.tree.specs if k not in listed]
    if unlisted:
        raise corrupt(
            path, f"shard {show(name)!r} has {listing(unlisted)}, which the index does not list", ADVICE
        )
