"""What a checkpoint holds as JSON and as one line each; the text for people is in `reports.inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckptdoctor.keys import printable
from ckptdoctor.trees import ParamTree
from ckptdoctor.words import count, tree_words
from ckptdoctor.wrappers import BY_SEGMENT, wrapper_counts

if TYPE_CHECKING:
    from ckptdoctor.formats.base import Archive, StateDict

FORMAT = 1  # version of the JSON schema


def size_text(n: int) -> str:
    """Bytes in words: "97.8 MB" (1 MB = 10^6 bytes)."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return count(n, "byte")


def origin(archive: Archive) -> list[str]:
    """Where it was saved from, as far as the file tells: torch's version, wrappers, devices."""
    trees = [sd.tree for sd in archive.state_dicts]
    words = [f"torch {printable(archive.hints['torch'])}"] if "torch" in archive.hints else []
    segments = dict.fromkeys(s for tree in trees for s in wrapper_counts(tree.specs))
    words += [f"under {BY_SEGMENT[s].writer} (`{s}.`)" for s in segments]
    devices = dict.fromkeys(spec.device for tree in trees for spec in tree.specs.values())
    if devices and list(devices) != ["cpu"]:
        words.append("on " + ", ".join(printable(d) for d in devices))
    hidden = ("torch", "root", "zip_version", "byteorder")
    words += [f"{printable(k)} {printable(v)}" for k, v in archive.hints.items() if k not in hidden]
    return words


def inspect_concise(archive: Archive) -> str:
    """One line for the file, one for each state dict, one for each finding."""
    file = printable(archive.path)
    lines = [f"{file}: {archive.description}, {size_text(archive.size)}, {count(archive.tensors, 'tensor')}"]
    for sd in archive.state_dicts:
        lines.append(f"{file}: state dict `{printable(sd.path)}`: {tree_words(sd.tree)}")
    lines += [f"{file}: {d.code} {d.title}" for d in archive.diagnostics]
    return "\n".join(lines)


def inspect_dict(archive: Archive) -> dict[str, Any]:
    """Plain data for JSON; ``tensors`` counts the keys that hold a tensor, wherever they are."""
    return {
        "format": FORMAT,
        "file": archive.path,
        "kind": archive.format,
        "description": archive.description,
        "size": archive.size,
        "tensors": archive.tensors,
        "state_dicts": [_state_dict_dict(sd) for sd in archive.state_dicts],
        "rest": dict(archive.rest),
        "hints": dict(archive.hints),
        "saved": origin(archive),
        "globals": list(archive.globals),
        "unknown_globals": list(archive.unknown_globals),
        "storages": len(archive.storages),
        "diagnostics": [d.to_dict() for d in archive.diagnostics],
    }


def _state_dict_dict(state_dict: StateDict) -> dict[str, Any]:
    tree = state_dict.tree
    return {
        "path": state_dict.path,
        "note": state_dict.note,
        "keys": len(tree),
        "values": tree.numel,
        "tree": tree.digest,
        "ordered": tree.ordered,
        "ties": [list(group) for group in tree.ties],
        "versions": dict(tree.versions),
        "extra": dict(tree.extra),
        "tensors": {key: tensor_dict(tree, key) for key in tree.specs},
    }


def tensor_dict(tree: ParamTree, key: str) -> dict[str, Any]:
    """One tensor's spec; strides and offset count elements, ``strides`` null is contiguous."""
    spec = tree[key]
    strides: Sequence[int] | None = spec.strides
    return {
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "strides": list(strides) if strides is not None else None,
        "offset": spec.offset,
        "device": spec.device,
        "storage": spec.storage,
        "kind": spec.kind,
        "layout": spec.layout,
    }
