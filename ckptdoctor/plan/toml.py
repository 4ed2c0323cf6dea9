"""Plans as TOML files that people review, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import PlanError
from ckptdoctor.keys import printable
from ckptdoctor.plan.checked import Checked
from ckptdoctor.plan.model import Plan

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

HEADER = """\
# Review this like a database migration: `ckptdoctor apply` does exactly this, to these two trees only.
"""
MIGRATION_TABLES = ("migration", "trees")
WIDTH = 100  # longer lists get one line per entry
_DEFAULTS = {"why": "", "shared": False, "state_dict": "", "flags": []}
_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def to_toml(plan: Plan) -> str:
    """The plan as a TOML text. ``from_toml(to_toml(plan)) == plan``."""
    parts = [HEADER + f"format = {plan.format}\n"]
    if plan.decision:
        parts[0] += toml_line("decision", plan.decision)
    if plan.warning:
        parts[0] += toml_line("warning", plan.warning)
    parts.append(_table("[source]", plan.source, {"tree": "keys, shapes, dtypes; any other is refused"}))
    parts.append(_table("[target]", plan.target, {}))
    parts += [_table("[[step]]", step, {}) for step in plan.step]
    parts += [_table("[[question]]", question, {}) for question in plan.question]
    parts.append(_result(plan))
    return "\n".join(parts)


def _result(plan: Plan) -> str:
    counts = plan.result.to_dict()
    return "[result]\n" + "".join(toml_line(k, v) for k, v in counts.items() if v or k == "loaded")


def _table(head: str, data: Checked, comments: Mapping[str, str]) -> str:
    lines = [head + "\n"]
    fields = data.to_dict()
    # `op` first, what every step has last.
    order = sorted(fields, key=lambda k: (k != "op", k in ("keys", "why", "safety")))
    for name in order:
        if name in _DEFAULTS and fields[name] == _DEFAULTS[name]:
            continue
        if fields[name] is not None:
            lines.append(toml_line(name, fields[name], comments.get(name, "")))
    return "".join(lines)


def toml_line(name: str, value: object, comment: str = "") -> str:
    """``name = value``; a list that is long takes one line an entry."""
    note = f"  # {comment}" if comment else ""
    return f"{name} = {_value(value, len(name) + 3)}{note}\n"


def _value(value: object, indent: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quote(value)
    assert isinstance(value, Sequence)
    items = [_value(v, 0) for v in value]
    if indent + sum(len(i) + 2 for i in items) <= WIDTH:
        return f"[{', '.join(items)}]"
    return "[\n" + "".join(f"  {i},\n" for i in items) + "]"


def quote(text: str) -> str:
    """A TOML basic string; nothing invisible is left in it."""
    return '"' + "".join(_quoted(c) for c in text) + '"'


def _quoted(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable():
        return char
    return f"\\u{ord(char):04X}" if ord(char) < 0x10000 else f"\\U{ord(char):08X}"


def from_toml(text: str) -> Plan:
    """Read a plan. Raises :class:`PlanError` that names the line or the step.

    A migration is a plan with two more tables (see `ckptdoctor.contract.migration`), so it is read as well.
    """
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"the plan is no TOML: {printable(str(error))}") from None
    from pydantic import ValidationError

    try:
        return from_dict({k: v for k, v in data.items() if k not in MIGRATION_TABLES})
    except ValidationError as error:
        raise PlanError(_words(error, data, text)) from None


def from_dict(data: Mapping[str, Any]) -> Plan:
    """The plan of plain data, the inverse of ``plan.to_dict()``. Raises pydantic's ``ValidationError``."""
    return _reader().validate_python(data)


@lru_cache(maxsize=1)
def _reader() -> TypeAdapter[Plan]:
    from pydantic import TypeAdapter

    return TypeAdapter(Plan)


def _words(error: ValidationError, data: Mapping[str, object], text: str) -> str:
    lines = ["the plan cannot be read:"]
    for problem in error.errors(include_url=False, include_context=False):
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"  {_place(problem['loc'], data, text)}: {printable(message)}")
    return "\n".join(lines)


def _place(loc: tuple[int | str, ...], data: Mapping[str, object], text: str) -> str:
    match loc:
        case (("step" | "question") as table, int(number), *rest):
            found = re.finditer(rf"^\s*\[\[\s*{table}\s*\]\]", text, re.MULTILINE)
            starts = [text.count("\n", 0, m.end()) + 1 for m in found]
            line = f"line {starts[number]}, " if number < len(starts) else ""
            return f"{line}{table} {number + 1} ({_op(data, number)}){_field(rest)}"
        case ():
            return "plan"
        case (table, *rest):
            return f"[{printable(str(table))}]{_field(rest)}"
    return "plan"  # pragma: no cover


def _op(data: Mapping[str, object], number: int) -> str:
    steps = data.get("step")
    entry = steps[number] if isinstance(steps, list) else None
    return printable(str(entry.get("op", "no op"))) if isinstance(entry, dict) else "no table"


def _field(rest: Sequence[int | str]) -> str:
    # pydantic puts the union's tag between the number and the field
    names = [printable(str(r)) for r in rest]
    return f", `{names[-1]}`" if names else ""


def json_schema() -> dict[str, object]:
    """JSON Schema of plan files."""
    return _reader().json_schema(by_alias=True)
