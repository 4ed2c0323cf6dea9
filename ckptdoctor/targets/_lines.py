"""Where in the user's source the parts of a model are assigned, for places in messages."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from ckptdoctor.targets._paths import is_installed, shown_path
from ckptdoctor.targets.survey import walk_modules

if TYPE_CHECKING:
    import torch

MAX_SOURCE = 500_000  # bytes of one file; larger ones are generated
_REGISTER = {"register_buffer", "register_parameter", "add_module", "register_module"}


def class_lines(model: torch.nn.Module) -> dict[str, str]:
    """``{path: "file:line"}``: the root's class, and the ``self.name = ...`` of modules and tensors.

    Only for source outside of torch and of installed packages; paths without a line are left out, so
    look for the nearest one above.
    """
    lines = {}
    root = _class_source(type(model))
    if root is not None:
        lines[""] = root[0]
    for path, module in walk_modules(model):
        assigned = _assigned(type(module))  # type: ignore[arg-type]  # mypy takes its hash for an instance's
        if assigned:
            for name in (*module._modules, *module._parameters, *module._buffers):
                if name in assigned:
                    lines[f"{path}.{name}" if path else name] = assigned[name]
    return lines


@cache
def _assigned(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        source = _class_source(base)
        if source is not None:
            found.update(source[1])
    return found


def _class_source(cls: type) -> tuple[str, dict[str, str]] | None:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if not file or not file.endswith(".py") or is_installed(file):
        return None
    return _classes_of(file).get(cls.__qualname__)


@lru_cache(maxsize=64)
def _classes_of(file: str) -> dict[str, tuple[str, dict[str, str]]]:
    """``{qualified name: (place, {attribute: place})}`` of one source file."""
    try:
        if os.path.getsize(file) > MAX_SOURCE:
            return {}
        with open(file, "rb") as stream:
            tree = ast.parse(stream.read())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}
    shown = shown_path(file)
    return {
        name: (f"{shown}:{node.lineno}", {attr: f"{shown}:{line}" for attr, line in _attributes(node)})
        for name, node in _class_nodes(tree, "")
    }


def _class_nodes(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, child
            yield from _class_nodes(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _class_nodes(child, f"{prefix}{child.name}.<locals>.")
        elif isinstance(child, (ast.If, ast.Try, ast.With, ast.For, ast.While, ast.ExceptHandler)):
            yield from _class_nodes(child, prefix)


def _attributes(node: ast.ClassDef) -> Iterator[tuple[str, int]]:
    """(name, line) of what is assigned to ``self`` or registered, last first, so that the first wins."""
    found = []
    for child in ast.walk(node):
        if isinstance(child, (ast.Assign, ast.AnnAssign)):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            found += [(name, child.lineno) for target in targets for name in _self_names(target)]
        elif isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.args:
            name = child.args[0]
            if (
                child.func.attr in _REGISTER
                and isinstance(name, ast.Constant)
                and isinstance(name.value, str)
            ):
                found.append((name.value, child.lineno))
    yield from sorted(found, key=lambda pair: -pair[1])


def _self_names(target: ast.expr) -> Iterator[str]:
    if isinstance(target, (ast.Tuple, ast.List)):
        for element in target.elts:
            yield from _self_names(element)
    elif (
        isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    ):
        yield target.attr
