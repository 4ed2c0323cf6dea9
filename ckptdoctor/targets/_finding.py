"""Finding models in an imported module: by name, or whatever can be built. Runs in the worker."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# Zero-argument functions with these names are called even when their code does not show what they return.
_FACTORY = re.compile(
    r"((build|make|create|get|construct|init)_)?(my_|the_|default_)?(model|net|network|module|backbone|encoder)"
)
# Never called without being named: they act, even where they return a model.
_ACTION = re.compile(
    r"(main|train|fit|run|test|eval|evaluate|validate|predict|infer|demo|bench|profile|export|convert|save|load|download|"
    r"parse|launch|serve|deploy|fine_?tune|resume|restore|upload|push|pull)(_.*)?"
)


@dataclass(frozen=True)
class Candidate:
    """Something in the file that is a model or makes one."""

    name: str
    how: str  # "instance", "class" or "function"
    file: str  # where it is defined, an instance where it is assigned
    line: int
    thing: Any


def import_file(path: Path) -> ModuleType:
    """Import ``path`` as ``python path`` would see it: its folder is on ``sys.path``, the name is its stem.

    A file with relative imports inside a package is imported as that package's module.
    """
    name, root = path.stem, path.parent
    if _imports_relatively(path):
        while (root / "__init__.py").exists():
            name, root = f"{root.name}.{name}", root.parent
    sys.path.insert(0, str(root))
    if "." in name:
        return importlib.import_module(name)
    if name in sys.modules or not name.isidentifier() or name in sys.stdlib_module_names:
        name = "_ckptdoctor_" + re.sub(r"\W", "_", name)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _imports_relatively(path: Path) -> bool:
    if not (path.parent / "__init__.py").exists():
        return False
    nodes = ast.walk(ast.parse(path.read_bytes()))
    return any(isinstance(node, ast.ImportFrom) and node.level > 0 for node in nodes)


def candidates(module: ModuleType) -> list[Candidate]:
    """Every module instance, module class and factory function that the file itself defines."""
    functions = _returning_modules(module)
    found = []
    for name, thing in list(vars(module).items()):
        if name.startswith("__"):
            continue
        if isinstance(thing, torch.nn.Module):
            found.append(candidate(module, name, thing))
        elif getattr(thing, "__module__", None) != module.__name__:
            continue
        elif isinstance(thing, type) and issubclass(thing, torch.nn.Module):
            if not inspect.isabstract(thing):
                found.append(candidate(module, name, thing))
        elif name in functions:
            found.append(candidate(module, name, thing))
    return found


def candidate(module: ModuleType, name: str, thing: Any) -> Candidate:
    """``thing``, found in ``module`` under ``name``, with its place."""
    if isinstance(thing, torch.nn.Module) or not callable(thing):
        line = _assigned_line(module, name)
        place = (getattr(module, "__file__", None) or "", line) if line else definition(type(thing))
        return Candidate(name, "instance", *place, thing)
    return Candidate(name, "class" if isinstance(thing, type) else "function", *definition(thing), thing)


def definition(thing: Any) -> tuple[str, int]:
    """(file, line) of a class or function; ("", 0) when it has none."""
    try:
        thing = inspect.unwrap(thing)
        return inspect.getsourcefile(thing) or "", inspect.getsourcelines(thing)[1]
    except (TypeError, OSError, ValueError):
        return "", 0


def needs(make: Any, kwargs: Mapping[str, Any]) -> tuple[list[list[str]], list[str], list[str]]:
    """([name, annotation] of arguments without a value, names it does not take, names that it takes)."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return [], [], []
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {n: p for n, p in parameters.items() if p.kind not in fixed}
    missing = [
        [n, _annotation(p)]
        for n, p in named.items()
        if p.default is inspect.Parameter.empty and n not in kwargs
    ]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else [n for n in kwargs if n not in named]
    return missing, unknown, list(named)


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _returning_modules(module: ModuleType) -> set[str]:
    """Names of functions that by annotation, name or code return a module, and that do not act."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return set()
    nodes = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    found = {n for n, node in nodes.items() if _FACTORY.fullmatch(n) or _annotated(module, node)}
    while True:  # a factory may call another one
        more = {n for n, node in nodes.items() if n not in found and _returns_call(module, node, found)}
        if not more:
            break
        found |= more
    return {n for n in found if not _ACTION.fullmatch(n) and callable(getattr(module, n, None))}


def _annotated(module: ModuleType, node: ast.FunctionDef) -> bool:
    if node.returns is None:
        return False
    text = node.returns.value if isinstance(node.returns, ast.Constant) else ast.unparse(node.returns)
    return isinstance(text, str) and _is_module_class(_lookup(module, text))


def _returns_call(module: ModuleType, node: ast.FunctionDef, factories: set[str]) -> bool:
    made = {
        target.id
        for child in ast.walk(node)
        if isinstance(child, ast.Assign) and _makes(module, child.value, factories)
        for target in child.targets
        if isinstance(target, ast.Name)
    }
    returns = [child.value for child in ast.walk(node) if isinstance(child, ast.Return) and child.value]
    return bool(returns) and all(
        _makes(module, value, factories) or (isinstance(value, ast.Name) and value.id in made)
        for value in returns
    )


def _makes(module: ModuleType, value: ast.expr, factories: set[str]) -> bool:
    if not isinstance(value, ast.Call):
        return False
    text = ast.unparse(value.func)
    return text in factories or _is_module_class(_lookup(module, text))


def _lookup(module: ModuleType, dotted: str) -> Any:
    thing: Any = module
    for part in dotted.strip("'\"").split("."):
        thing = getattr(thing, part, None)
    return thing


def _is_module_class(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, torch.nn.Module)


def _assigned_line(module: ModuleType, name: str) -> int:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return 0
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            return node.lineno
    return 0
