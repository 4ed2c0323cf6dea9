"""An archive as plain data that tests compare: each tensor with its storage, in the order of the file."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.trees import TensorSpec

VERSION = 1


def describe(archive: Archive) -> dict[str, Any]:
    """Everything that was read, JSON-ready. ``format`` is the version of this form, ``kind`` the file's."""
    return {
        "format": VERSION,
        "path": archive.path,
        "kind": archive.format,
        "description": archive.description,
        "size": archive.size,
        "files": list(archive.files),
        "tensors": archive.tensors,
        "state_dicts": [_state_dict(s) for s in archive.state_dicts],
        "rest": dict(archive.rest),
        "globals": list(archive.globals),
        "unknown_globals": list(archive.unknown_globals),
        "hints": dict(archive.hints),
        "diagnostics": [d.to_dict() for d in archive.diagnostics],
    }


def _state_dict(state_dict: StateDict) -> dict[str, Any]:
    tree = state_dict.tree
    specs = tree.specs.values()
    repeated = {k for group in tree.ties for k in group[1:]}
    return {
        "path": state_dict.path,
        "note": state_dict.note,
        "keys": len(tree),
        "numel": tree.numel,
        "nbytes": sum(s.nbytes for k, s in tree.specs.items() if k not in repeated),
        "dtypes": dict(Counter(s.dtype for s in specs).most_common()),
        "devices": dict(Counter(s.device for s in specs).most_common()),
        "ties": [list(group) for group in tree.ties],
        "ordered": tree.ordered,
        "versions": dict(tree.versions),
        "extra": dict(tree.extra),
        "entries": [_entry(k, s) for k, s in tree.specs.items()],
    }


def _entry(key: str, spec: TensorSpec) -> dict[str, Any]:
    return {
        "key": key,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "kind": spec.kind,
        "device": spec.device,
        "strides": None if spec.strides is None else list(spec.strides),
        "storage": spec.storage,
        "offset": spec.offset,
        "layout": spec.layout,
    }
