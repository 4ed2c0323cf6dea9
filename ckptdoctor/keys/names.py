"""Keys and their segments: split, order, show. Keys come from files, so they are untrusted text."""

from __future__ import annotations

import re
from functools import lru_cache

# A number as people write one in a name. `007` is text: no arithmetic gives the zeros back.
# The first digit stands in front of what is asked of it: so a search goes from digit to digit.
NUMBER = re.compile(r"[0-9](?<![0-9]{2})(?:(?<=0)|(?<=[1-9])[0-9]{0,14})(?![0-9])")
_NUMBERS = re.compile(f"({NUMBER.pattern})")
NUMBER_LIMIT = 10**15

NaturalKey = tuple[tuple[tuple[int, int, str], ...], ...]


def split(key: str) -> list[str]:
    """The segments of a key. ``split("layer1.0.weight") == ["layer1", "0", "weight"]``."""
    return key.split(".")


def join(segments: list[str]) -> str:
    """The inverse of :func:`split`."""
    return ".".join(segments)


def skeleton(text: str) -> str:
    """The text with every number replaced by ``#``: ``"layer#.#.weight"``."""
    return NUMBER.sub("#", text)


def numbers(text: str) -> tuple[int, ...]:
    """The numbers that :func:`skeleton` replaces, in order."""
    return tuple(map(int, NUMBER.findall(text)))


def natural_key(key: str) -> NaturalKey:
    """Sort key under which ``layers.2`` comes before ``layers.10``."""
    return tuple(map(_pieces, key.split(".")))


@lru_cache(maxsize=65536)
def _pieces(segment: str) -> tuple[tuple[int, int, str], ...]:
    parts = _NUMBERS.split(segment)
    return tuple((0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts) if p)


def printable(text: str) -> str:
    r"""The text as it may be shown: control characters, line breaks, bidi marks and the like escaped.

    ``printable("a\x1b[31m") == "a\\x1b[31m"``. Backslashes stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else escape_char(c) for c in text)


def escape_char(char: str) -> str:
    r"""One character as ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``."""
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
