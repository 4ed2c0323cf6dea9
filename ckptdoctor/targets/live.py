"""A live module as a target: its tree, where its class is, and what older names are declared."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptdoctor.formats import quiet_gc
from ckptdoctor.settings import renamed_from
from ckptdoctor.targets.base import Target
from ckptdoctor.targets.module import tree_of, walk

if TYPE_CHECKING:
    import torch


def live_target(model: torch.nn.Module) -> Target:
    """The target of a module at hand, with the declarations of the nearest ``pyproject.toml``.

    Its place is found by :func:`placed`, where somebody wants to read it.
    """
    with quiet_gc():
        walked = walk(model)
        tree = tree_of(walked)
    return with_settings(Target(tree, type(model).__name__, kind=type(model), walked=walked), Path())


def placed(target: Target) -> Target:
    """The same with the place of its class, where that is known, and without the model itself."""
    if target.kind is None or target.place:
        return target
    place = ""
    with suppress(TypeError, OSError, UnicodeDecodeError):
        file = inspect.getsourcefile(target.kind) or ""
        place = f"{Path(file).name}:{_line(target.kind, Path(file))}" if file else ""
    return replace(target, place=place, walked=None)


def _line(kind: type, file: Path) -> int:
    """Where the class begins. Parsing its file takes milliseconds, so only where a search does not tell."""
    text = file.read_text(encoding="utf-8")
    found = list(re.finditer(rf"^[ \t]*class[ \t]+{re.escape(kind.__name__)}\b", text, re.M))
    above = text[: found[0].start()].removesuffix("\n").rpartition("\n")[2] if len(found) == 1 else "?"
    if above.strip():  # several of that name, or a decorator, maybe
        return inspect.getsourcelines(kind)[1]
    return text.count("\n", 0, found[0].start()) + 1


def with_settings(target: Target, folder: Path) -> Target:
    """What ``[tool.ckptdoctor] renamed_from`` declares, under what the model itself declares."""
    declared = renamed_from(folder if folder.is_dir() else Path())
    if not declared:
        return target
    return replace(target, tree=replace(target.tree, renamed={**declared, **target.tree.renamed}))
