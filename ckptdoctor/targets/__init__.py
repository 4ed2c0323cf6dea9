"""READ the model's side: live modules, source files, reference checkpoints and ``.tree`` files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptdoctor.errors import TargetError
from ckptdoctor.targets._text import printable
from ckptdoctor.targets.base import Prefer, Target
from ckptdoctor.targets.module import class_lines, snapshot

__all__ = ["Prefer", "Target", "class_lines", "load_target", "snapshot"]


def load_target(
    model: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60,
    prefer: Prefer | None = None,
) -> Target:
    """The tree of the model that ``model`` names, without importing torch into this process.

    ``model.py``, ``model.py:name`` and ``package.module:name`` are built in a subprocess (with
    ``kwargs``, plain JSON, and at most ``timeout`` seconds); a ``.tree`` file and a reference
    checkpoint (``file.pth`` or ``file.pth#path.to.state_dict``) are read. ``prefer`` chooses when
    several models are possible. Raises ``TargetError``.
    """
    text = os.fspath(model)
    from ckptdoctor.targets import source

    found = source.parse_source(text)
    path = Path(text)
    if found is not None and (found.file or not path.exists()):
        return source.load_source(found, kwargs=kwargs, timeout=timeout, prefer=prefer)
    if path.suffix == ".tree":
        _refuse_kwargs(kwargs, text)
        return _read_tree_file(path)
    if (text and path.exists()) or Path(text.rpartition("#")[0] or os.devnull).is_file():
        from ckptdoctor.targets.checkpoint import load_reference

        _refuse_kwargs(kwargs, text)
        return load_reference(text, prefer=prefer)
    raise TargetError(
        f"`{printable(text)}` is no model: there is no such file. A model is given as model.py, "
        "model.py:name, package.module:name, a reference checkpoint, or a .tree file"
    )


def _refuse_kwargs(kwargs: Mapping[str, Any] | None, text: str) -> None:
    if kwargs:
        raise TargetError(
            f"--kwargs is for models that are built from source; {printable(text)} is a file of keys"
        )


def _read_tree_file(path: Path) -> Target:
    from ckptdoctor.targets.treefile import read_tree

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TargetError(
            f"{printable(str(path))} is not a .tree file: {error.reason} at byte {error.start}"
        ) from None
    except OSError as error:
        raise TargetError(f"{printable(str(path))} cannot be read: {error.strerror}") from None
    return Target(tree=read_tree(text, str(path)), label=str(path), place=str(path))
