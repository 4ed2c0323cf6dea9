"""Makes finished cases from the small examples that rules carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptdoctor.decisions import parse_decisions
from ckptdoctor.diagnosis import Diagnosis, examine
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.rules import Example
from ckptdoctor.targets import Target
from ckptdoctor.trees import ParamTree, TensorSpec


def tree(keys: Mapping[str, Any], modules: Mapping[str, str] | None = None) -> ParamTree:
    specs = {}
    for key, value in keys.items():
        shape, more = value if value and isinstance(value[-1], dict) else (value, {})
        specs[key] = TensorSpec(tuple(shape), **more)
    return ParamTree(specs, modules=modules or {})


def archive(
    *state_dicts: tuple[str, Mapping[str, Any]],
    rest: Mapping[str, str] | None = None,
    path: str = "ckpt.pth",
    **more: Any,
) -> Archive:
    found = tuple(StateDict(p, tree(keys)) for p, keys in state_dicts if keys)
    return Archive(
        path=path,
        format=more.pop("format", "torch-zip"),
        description="torch zip",
        size=1234,
        state_dicts=found,
        storages={},
        rest=rest or {},
        tensors=more.pop("tensors", sum(len(sd.tree) for sd in found)),
        **more,
    )


def target(
    keys: Mapping[str, Any],
    label: str = "model.py:net",
    modules: Mapping[str, str] | None = None,
    **more: Any,
) -> Target:
    return Target(tree(keys, modules), label, more.pop("place", "model.py:7"), **more)


def example(made: Example) -> Diagnosis:
    attached = tuple(
        Diagnostic(code, "as-read", severity, f"the reader's own words for {code}")
        for code, severity in made.diagnostics
    )
    seen = archive(
        (made.path, made.source),
        *made.more.items(),
        rest=made.rest,
        diagnostics=attached,
        tensors=99,
        format=made.format,
    )
    return examine(seen, target(made.target, modules=made.modules), parse_decisions(made.decisions))


def diagnose(source: Mapping[str, Any], model: Mapping[str, Any], *decisions: str, **more: Any) -> Diagnosis:
    return examine(archive(("", source), **more), target(model), parse_decisions(decisions))
