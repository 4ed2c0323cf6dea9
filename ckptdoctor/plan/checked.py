"""Dataclasses whose fields say what they may hold.

The conditions hold however an object is made. Pydantic reads the same annotations where a plan comes from a
file; it is imported there only, since a diagnosis makes plans and reads none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar, cast, get_args, get_origin, get_type_hints

Test = Callable[[Any], Any]  # the value as it is kept; raises ValueError
T = TypeVar("T")
_LATE = "_late"  # where values that nobody has asked for yet are


@dataclass(frozen=True, eq=False)
class Check:
    """In ``Annotated``: what a value must pass, and how JSON Schema says it."""

    test: Test
    schema: Mapping[str, Any] = field(default_factory=dict)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        inner = handler(source)
        if inner["type"] == "int":
            inner = {**inner, "strict": True}  # `true` and "3" are no counts
        return core_schema.no_info_after_validator_function(self.test, inner)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {**handler(schema), **self.schema}


@dataclass(frozen=True)
class Tagged:
    """In ``Annotated``: the field ``tag`` tells the members of a union apart."""

    tag: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field

        return handler.generate_schema(Annotated[source, Field(discriminator=self.tag)])


class _Late:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def late(make: Callable[[], T]) -> T:
    """A field's value that is worked out, and checked, when somebody asks for it."""
    return cast(T, _Late(make))


def outer_name(name: str) -> str:
    """The name of a field in files: ``from`` and ``class`` are no names in Python."""
    return name.rstrip("_")


@dataclass(frozen=True)
class Checked:
    """Base of frozen dataclasses: fields pass the checks of their annotations, or ValueError is raised."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "alias_generator": outer_name,
        "populate_by_name": True,
    }

    def __post_init__(self) -> None:
        for name, test in _tests(type(self)):  # type: ignore[arg-type]  # mypy takes its hash for an instance's
            value = getattr(self, name)
            if type(value) is _Late:
                object.__delattr__(self, name)  # so that `__getattr__` is asked for it
                vars(self)[_LATE] = {**vars(self).get(_LATE, {}), name: (test, value)}
            else:
                object.__setattr__(self, name, _passed(name, test, value))

    def __getattr__(self, name: str) -> Any:
        test, value = vars(self).get(_LATE, {}).get(name, (None, None))
        if test is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        made = _passed(name, test, value.make())
        object.__setattr__(self, name, made)
        vars(self)[_LATE].pop(name, None)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the names that files have."""
        return {outer_name(f.name): _plain(getattr(self, f.name)) for f in fields(self)}


def _passed(name: str, test: Test, value: Any) -> Any:
    try:
        return test(value)
    except ValueError as error:
        raise ValueError(f"`{outer_name(name)}`: {error}") from None


def _plain(value: object) -> Any:
    if isinstance(value, Checked):
        return value.to_dict()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


@cache
def _tests(cls: type) -> tuple[tuple[str, Test], ...]:
    hints = get_type_hints(cls, include_extras=True)
    found = ((f.name, _test(hints[f.name])) for f in fields(cls))
    return tuple((name, test) for name, test in found if test is not None)


def _test(hint: Any) -> Test | None:
    """The checks of an annotation: those of a tuple's entries, then its own."""
    if get_origin(hint) is tuple and (each := _test(get_args(hint)[0])) is not None:
        return lambda values: tuple(map(each, values))
    if not hasattr(hint, "__metadata__"):
        return None
    inner = _test(get_args(hint)[0])
    tests = [*([inner] if inner else []), *(m.test for m in hint.__metadata__ if isinstance(m, Check))]

    def every(value: Any) -> Any:
        for test in tests:
            value = test(value)
        return value

    return every if tests else None
