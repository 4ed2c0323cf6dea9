"""ParamTree <-> JSON, between the worker process and ours. Not a file format: both ends are this version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptdoctor.facts import Fact
from ckptdoctor.trees import ParamTree, TensorSpec


def encode(tree: ParamTree) -> dict[str, Any]:
    """Plain data for ``json.dumps``; devices are left out, because the worker chose them."""
    return {
        "specs": _rows(tree.specs),
        "modules": dict(tree.modules),
        "versions": dict(tree.versions),
        "extra": dict(tree.extra),
        "transient": _rows(tree.transient),
        "renamed": dict(tree.renamed),
        "facts": [[f.name, f.value, f.where] for f in tree.facts],
    }


def decode(data: Mapping[str, Any]) -> ParamTree:
    """The tree that ``encode`` was given, on the CPU."""
    return ParamTree(
        specs=_specs(data["specs"]),
        ordered=True,
        modules=data["modules"],
        versions=data["versions"],
        extra=data["extra"],
        transient=_specs(data["transient"]),
        renamed=data["renamed"],
        facts=tuple(Fact(*row) for row in data["facts"]),
    )


def _rows(specs: Mapping[str, TensorSpec]) -> list[list[Any]]:
    return [
        [key, s.shape, s.dtype, s.kind, s.strides, s.storage, s.offset, s.storage_bytes, s.layout]
        for key, s in specs.items()
    ]


def _specs(rows: list[list[Any]]) -> dict[str, TensorSpec]:
    return {
        key: TensorSpec(
            tuple(shape), dtype, kind, "cpu", tuple(strides) if strides is not None else None,
            storage, offset, nbytes, layout,
        )
        for key, shape, dtype, kind, strides, storage, offset, nbytes, layout in rows
    }  # fmt: skip
