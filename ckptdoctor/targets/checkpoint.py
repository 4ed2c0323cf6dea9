"""A reference checkpoint as the model: the tree of one of its state dicts."""

from __future__ import annotations

import os
from pathlib import Path

from ckptdoctor.errors import ReadError, TargetError
from ckptdoctor.targets._text import printable
from ckptdoctor.targets.base import Prefer, Target


def load_reference(text: str, *, prefer: Prefer | None = None) -> Target:
    """``file.pth`` (its only state dict, or the one that ``prefer`` chooses) or ``file.pth#path``.

    Raises ``TargetError``; the reason of a file that cannot be read is in its message.
    """
    from ckptdoctor.formats import open_checkpoint

    file, path = _parts(text)
    try:
        archive = open_checkpoint(file)
    except ReadError as error:
        raise TargetError(f"as a reference for the model: {error}", error.diagnostics) from error
    targets = [
        Target(tree=s.tree, label=f"{file}#{s.path}" if s.path else file, place=file)
        for s in archive.state_dicts
        if path is None or s.path == path
    ]
    if not targets:
        raise TargetError(_nothing(file, path, [s.path for s in archive.state_dicts]))
    if len(targets) == 1:
        return targets[0]
    chosen = prefer(targets) if prefer is not None else None
    if chosen is None:
        rows = "\n".join(f"  {printable(t.label)}  {len(t.tree)} tensors" for t in targets)
        raise TargetError(
            f"{printable(file)} holds {len(targets)} state dicts; name the one that is meant:\n{rows}"
        )
    found = targets[chosen]
    return Target(found.tree, found.label, found.place, candidates=tuple(targets))


def _parts(text: str) -> tuple[str, str | None]:
    if Path(text).exists():
        return text, None
    file, _, path = text.rpartition("#")
    return os.fspath(file), path


def _nothing(file: str, path: str | None, known: list[str]) -> str:
    if path is None:
        return f"{printable(file)} holds no state dict, so there is nothing to compare with"
    names = ", ".join(f"`{printable(file)}#{printable(p)}`" for p in known) or "none at all"
    return f"{printable(file)} has no state dict at `{printable(path)}`; it has {names}"
