"""Wrapper segments in keys: taking them out as the alignment says, and finding those the model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptdoctor.align.model import Strip
from ckptdoctor.wrappers import WRAPPERS


def strip_all(keys: Iterable[str], strips: Sequence[Strip]) -> Mapping[str, str]:
    """Each key and its name after all ``strips``, in their order."""
    names = {key: key for key in keys}
    for strip in strips:
        for key, name in names.items():
            names[key] = strip_one(name, strip)
    return names


def strip_one(name: str, strip: Strip) -> str:
    """One strip on one name: by whole segments, never by substring."""
    segment = strip.segment
    if not strip.anywhere:
        return name[len(segment) + 1 :] if name.startswith(segment + ".") else name
    parts, out = name.split("."), []
    wanted = segment.split(".")
    i = 0
    while i < len(parts):
        # The last segment names the tensor itself and is no wrapper.
        if parts[i : i + len(wanted)] == wanted and i + len(wanted) < len(parts):
            i += len(wanted)
        else:
            out.append(parts[i])
            i += 1
    return ".".join(out)


def column(key: str, segment: str) -> int | None:
    """Where ``segment`` begins in ``key`` as whole segments, or None."""
    framed = f".{key}."
    at = framed.find(f".{segment}.")
    return at if at >= 0 else None


def added_segment(source: str, target: str) -> str:
    """The one wrapper segment by which ``target`` is longer than ``source``, or ``""``."""
    if len(target) <= len(source):
        return ""
    for row in WRAPPERS:
        if strip_one(target, Strip(row.segment, "", False, 0)) == source:
            return row.segment
        if row.anywhere and strip_one(target, Strip(row.segment, "", True, 0)) == source:
            return row.segment
    return ""
