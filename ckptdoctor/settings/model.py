"""What ``[tool.ckptdoctor]`` may hold, as pydantic models; errors name file and line."""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ckptdoctor.errors import SettingsError
from ckptdoctor.keys import Rule, matches, printable
from ckptdoctor.settings.lines import find_line

Compatibility = Literal["none", "backward", "forward", "full"]
Consumer = Literal["torch-strict", "torch-non-strict", "dcp", "transformers"]

TABLE = ("tool", "ckptdoctor")


def _pattern(text: str) -> str:
    matches(text, "")
    return text


def _renames(table: Mapping[str, str]) -> Mapping[str, str]:
    for new, old in table.items():
        Rule(new, old)
    return table


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Pattern = Annotated[str, AfterValidator(_pattern)]
Text = Annotated[str, Field(min_length=1)]
Level = Literal["strict", "weights"] | Annotated[tuple[Pattern, ...], Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Accept(_Table):
    """A finding that somebody answers for, until a date: ``rule`` at the ``keys`` is no error till then."""

    rule: Text = "breaking-change"
    keys: tuple[Pattern, ...] = ("**",)
    model: Text | None = None
    release: Text | None = None
    reason: Text
    owner: Text
    until: datetime.date

    @model_validator(mode="before")
    @classmethod
    def _keys_as_list(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "keys" in data:
            return {**data, "keys": _one_or_more(data["keys"])}
        return data


class Model(_Table):
    """One model: where it is built from, with which arguments, and what it promises."""

    name: Name
    entry: Text
    kwargs: Mapping[str, Any] = Field(default_factory=dict)
    variants: Mapping[Name, Mapping[str, Any]] = Field(default_factory=dict)
    timeout: Annotated[float, Field(gt=0)] = 60
    compatibility: Compatibility | None = None
    level: Level | None = None
    releases: tuple[Version, ...] | None = None
    artifacts: tuple[Text, ...] = ()
    artifact_dtypes: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _json(self) -> Model:
        try:
            json.dumps([self.kwargs, self.variants])
        except (TypeError, ValueError):
            raise ValueError("kwargs and variants have to be plain JSON: no dates, no nan") from None
        return self


class Settings(_Table):
    """``[tool.ckptdoctor]``. Every model is checked against every release that it still supports."""

    models: Annotated[tuple[Model, ...], Field(alias="model")] = ()
    folder: Text = "ckpt"
    compatibility: Compatibility = "backward"
    level: Level = "strict"
    consumers: Annotated[tuple[Consumer, ...], Field(min_length=1)] = ("torch-strict",)
    unreleased: bool = True
    accept: tuple[Accept, ...] = ()
    renamed_from: Annotated[Mapping[str, str], AfterValidator(_renames)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _unlike(self) -> Settings:
        names = [m.name for m in self.models]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise ValueError(f"two models are called `{twice}`")
        return self


def read_settings(file: Path) -> Settings:
    """The settings in this ``pyproject.toml``. Raises :class:`SettingsError` with file and line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{printable(str(file))} cannot be read: {error}") from None
    return parse_settings(text, str(file))


def parse_settings(text: str, name: str) -> Settings:
    """The settings in the text of a ``pyproject.toml``; ``name`` is the file's name for messages."""
    try:
        data: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{printable(name)} is no TOML: {printable(str(error))}") from None
    table = data.get("tool", {}).get("ckptdoctor", {})
    try:
        return Settings.model_validate(table)
    except ValidationError as error:
        raise SettingsError("\n".join(_lines(error, text, name))) from None


def _lines(error: ValidationError, text: str, name: str) -> list[str]:
    found: dict[str, None] = {}
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        loc: Sequence[str | int] = problem["loc"]
        line = find_line(text, (*TABLE, *loc))
        message = problem["msg"].removeprefix("Value error, ")
        found[f"{printable(name)}:{line}: {_where(loc)}{printable(message)}{_hint(problem['type'])}"] = None
    return list(found)


def _where(loc: Sequence[str | int]) -> str:
    # pydantic names the branch of a union behind the field; only names that can stand in a TOML file help
    words = [str(part) for part in loc if isinstance(part, str) and "[" not in part]
    return f"`{printable('.'.join(words))}`: " if words else ""


def _hint(kind: str) -> str:
    if kind == "extra_forbidden":
        return "; there is no such setting"
    return ""
