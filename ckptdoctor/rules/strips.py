"""Wrapper segments in keys: taking them out as the alignment says, and finding those the model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptdoctor.align.model import Strip
from ckptdoctor.wrappers import WRAPPERS, is_wrapped


def strip_all(
    keys: Iterable[str], strips: Sequence[Strip], partners: Mapping[str, str] | None = None
) -> Mapping[str, str]:
    """Each key and its name after all ``strips``, in their order.

    A strip leaves a key alone whose partner (the model key that it fills) carries the segment, too.
    """
    names = {key: key for key in keys}
    for strip in strips:
        names = strip_names(names, strip, partners or {})
    return names


def strip_names(names: Mapping[str, str], strip: Strip, partners: Mapping[str, str]) -> dict[str, str]:
    """One strip on all names; see :func:`strip_all`."""
    if not strip.anywhere:
        head = strip.segment + "."
        return {
            key: name[len(head) :]
            if name.startswith(head) and not partners.get(key, "").startswith(head)
            else name
            for key, name in names.items()
        }
    return {
        key: name if carries(partners.get(key, ""), strip) else strip_one(name, strip)
        for key, name in names.items()
    }


def carries(name: str, strip: Strip) -> bool:
    """Whether the strip would change the name."""
    return strip_one(name, strip) != name


def strip_one(name: str, strip: Strip) -> str:
    """One strip on one name: by whole segments, never by substring."""
    segment = strip.segment
    if not strip.anywhere:
        return name[len(segment) + 1 :] if name.startswith(segment + ".") else name
    if segment not in name:
        return name
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
    if len(target) <= len(source) or not is_wrapped(target):
        return ""
    for row in WRAPPERS:
        if strip_one(target, Strip(row.segment, "", False, 0)) == source:
            return row.segment
        if row.anywhere and strip_one(target, Strip(row.segment, "", True, 0)) == source:
            return row.segment
    return ""
