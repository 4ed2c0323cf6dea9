"""On which line of a TOML text a value stands; `tomllib` reads values without their places."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence

Path = tuple[str | int, ...]


def find_line(text: str, path: Sequence[str | int]) -> int:
    """The line (from 1) of the value at ``path``, or of the nearest table around it; 1 when none is named.

    >>> find_line('[tool.x]\\na = 1\\n[[tool.x.model]]\\nname = "n"', ("tool", "x", "model", 0, "name"))
    4
    """
    lines = value_lines(text)
    for length in range(len(path), 0, -1):
        if tuple(path[:length]) in lines:
            return lines[tuple(path[:length])]
    return 1


def value_lines(text: str) -> Mapping[Path, int]:
    """Line of every table header and of every key of a valid TOML text; inline tables count as one value."""
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    for number, data, head in _statements(text):
        keys = _first_keys(data)
        if head.startswith("["):
            table = _enter(keys, counts, array=head.startswith("[["))
            found.setdefault(table, number)
            continue
        for length in range(1, len(keys) + 1):
            found.setdefault((*table, *keys[:length]), number)
    return found


def _statements(text: str) -> Iterator[tuple[int, Mapping[str, object], str]]:
    """(line, what it says alone, its first words) of each statement; one may take several lines.

    Every statement of a valid TOML text is a TOML text itself, and no part of one is.
    """
    chunk: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        chunk.append(line)
        try:
            data = tomllib.loads("\n".join(chunk))
        except tomllib.TOMLDecodeError:
            continue
        if data:
            yield number - len(chunk) + 1, data, chunk[0].strip()
        chunk = []


def _first_keys(data: object) -> list[str]:
    """``a.b`` of ``{"a": {"b": ...}}``; the values of an inline table are not told apart from its keys."""
    keys: list[str] = []
    while isinstance(data, Mapping) and len(data) == 1:
        (key,) = data
        keys.append(key)
        data = data[key]
        if isinstance(data, list) and data == [{}]:
            break
    return keys


def _enter(keys: Sequence[str], counts: dict[Path, int], *, array: bool) -> Path:
    path: Path = ()
    for place, key in enumerate(keys):
        path = (*path, key)
        if array and place == len(keys) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path
