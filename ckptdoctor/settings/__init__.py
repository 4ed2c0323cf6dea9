"""``[tool.ckptdoctor]`` of the nearest pyproject.toml. Its pydantic models are in `settings.model`."""

from __future__ import annotations

import os
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from ckptdoctor.errors import SettingsError


def find_settings(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The nearest ``pyproject.toml`` at or above ``folder`` that has the table, and the table.

    Raises :class:`SettingsError` for one that is no TOML.
    """
    place, above = "", os.path.realpath(folder)
    while place != above:
        place, above = above, os.path.dirname(above)
        file = os.path.join(place, "pyproject.toml")
        if os.access(file, os.F_OK) and os.path.isfile(file):  # the first is cheaper where there is none
            stat = os.stat(file)
            table = _table(file, (stat.st_size, stat.st_mtime_ns))
            if isinstance(table, dict):
                return Path(file), table
    return None


@lru_cache(maxsize=8)
def _table(file: str, stamp: tuple[int, int]) -> Any:
    """The table of a file as it was at that size and time. Loading looks at it each time."""
    try:
        found = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: {error}") from None
    return found.get("tool", {}).get("ckptdoctor")


def renamed_from(folder: Path) -> dict[str, str]:
    """``renamed_from``: pattern of the model's keys -> what they were called in older checkpoints.

    Raises :class:`SettingsError` when it is anything else than texts to texts.
    """
    found = find_settings(folder)
    if found is None:
        return {}
    file, table = found
    declared = table.get("renamed_from", {})
    if not isinstance(declared, dict) or not all(isinstance(v, str) for v in declared.values()):
        raise SettingsError(
            f"{file}: [tool.ckptdoctor] renamed_from must be a table of new names to old ones, such as "
            '"stages.{i}.**" = "layer{i+1}.**"'
        )
    return declared
