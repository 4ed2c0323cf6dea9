"""What is checked: every variant of every model of the settings, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdoctor.errors import SettingsError
from ckptdoctor.keys import printable
from ckptdoctor.settings import find_settings
from ckptdoctor.settings.model import Compatibility, Level, Model, Settings, read_settings


@dataclass(frozen=True, eq=False)
class Unit:
    """One model in one variant. ``name`` is ``resnet`` or, with variants, ``resnet.small``."""

    name: str
    model: Model
    kwargs: Mapping[str, Any]
    folder: str  # of the contract's files, from the project's root
    compatibility: Compatibility
    level: Level

    @property
    def lock(self) -> str:
        """The committed tree of HEAD's model, as a path from the root."""
        return f"{self.folder}/{self.name}.tree"

    @property
    def releases(self) -> str:
        """The folder of the releases' trees."""
        return f"{self.folder}/releases/{self.name}"

    @property
    def migrations(self) -> str:
        """The folder of the migrations."""
        return f"{self.folder}/migrations/{self.name}"

    def release(self, version: str) -> str:
        """The tree of one release."""
        return f"{self.releases}/{version}.tree"


@dataclass(frozen=True)
class Project:
    """The settings and where they were found; every path below is from ``root``."""

    root: Path
    settings: Settings
    units: tuple[Unit, ...]

    @property
    def file(self) -> Path:
        """``pyproject.toml``."""
        return self.root / "pyproject.toml"

    def choose(self, name: str | None) -> tuple[Unit, ...]:
        """The units of one model, or the one unit, with this name; all without a name."""
        if name is None:
            return self.units
        found = tuple(u for u in self.units if name in (u.name, u.model.name))
        if not found:
            known = ", ".join(f"`{u.name}`" for u in self.units) or "none"
            raise SettingsError(f"there is no model `{printable(name)}` in the settings; there is {known}")
        return found


def open_project(folder: Path) -> Project:
    """The project that ``folder`` belongs to. Raises :class:`SettingsError` when it names no model."""
    found = find_settings(folder)
    if found is None:
        raise SettingsError(
            f"no pyproject.toml at or above {printable(str(folder.resolve()))} has [tool.ckptdoctor]; add:\n"
            '  [[tool.ckptdoctor.model]]\n  name = "net"\n  entry = "model.py:Net"'
        )
    file, _ = found
    settings = read_settings(file)
    if not settings.models:
        raise SettingsError(
            f"{printable(str(file))}: [tool.ckptdoctor] names no model, so there is nothing to check; add:\n"
            '  [[tool.ckptdoctor.model]]\n  name = "net"\n  entry = "model.py:Net"'
        )
    return Project(file.parent, settings, units_of(settings))


def units_of(settings: Settings) -> tuple[Unit, ...]:
    """Every variant of every model; a model without variants is one unit."""
    return tuple(unit for model in settings.models for unit in _variants(settings, model))


def _variants(settings: Settings, model: Model) -> list[Unit]:
    rows: list[tuple[str, Mapping[str, Any]]] = [
        (f"{model.name}.{variant}", {**model.kwargs, **more}) for variant, more in model.variants.items()
    ]
    return [
        Unit(
            name,
            model,
            kwargs,
            settings.folder.strip("/"),
            model.compatibility or settings.compatibility,
            model.level or settings.level,
        )
        for name, kwargs in rows or [(model.name, model.kwargs)]
    ]
