"""Words for untrusted names and foreign values in messages of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptdoctor import keys

_MAX = 200


def printable(text: str) -> str:
    """``text`` cut to a line's length, with everything escaped that could act on a terminal."""
    safe = keys.printable(text)
    return safe if len(safe) <= _MAX else safe[: _MAX - 3] + "..."


def listing(names: Iterable[str], limit: int = 6) -> str:
    """`` `a`, `b` and 3 more``."""
    all_names = list(names)
    shown = ", ".join(f"`{printable(n)}`" for n in all_names[:limit])
    more = len(all_names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def describe(value: object) -> str:
    """A value in a few words, never its content: ``dict of 3``, ``None``, ``bytes, 12 long``."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return printable(f"the class {value.__name__}")
    name = type(value).__name__
    if isinstance(value, (bytes, bytearray, str)):
        return f"{name}, {len(value)} long"
    if isinstance(value, (Mapping, Sequence, set, frozenset)):
        return printable(f"{name} of {len(value)}")
    if isinstance(value, (bool, int, float)):
        return printable(f"{name} {value}")
    return printable(f"an object of {type(value).__module__}.{name}")
