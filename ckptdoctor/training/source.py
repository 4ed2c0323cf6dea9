"""A training status as it is on disk: weights, optimizer, scheduler, scaler, counters, all the rest."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptdoctor.errors import CkptDoctorError, CorruptCheckpointError, ReadError
from ckptdoctor.formats import Archive, open_checkpoint
from ckptdoctor.formats.content import Leaf, Opaque, leaf_reader
from ckptdoctor.keys import printable
from ckptdoctor.training.layouts import FOLDERS, LAYOUTS, PLAIN, Folder, Layout, Role

_STEP = re.compile(r"\[(-?\d+)\]|([^.\[\]]+)")
_NUMBERED = re.compile(r"(optimizer|scheduler)_\d+\.bin")
_ABSENT = object()
LARGEST_JSON = 1 << 26


@dataclass(frozen=True)
class Part:
    """One value of a training status and the file that it is in; ``path`` is its place, for messages."""

    value: Any
    archive: Archive | None
    path: str

    @property
    def where(self) -> str:
        """For messages, safe to print: the file, and the place in it."""
        file = printable(self.archive.path) if self.archive is not None else ""
        return (
            f"{file} [{printable(self.path)}]" if file and not file.endswith(self.path) else file or self.path
        )


@dataclass(frozen=True)
class Training:
    """A checkpoint with everything around its weights. ``parts`` holds the roles that are there."""

    archive: Archive  # of the weights
    layout: Layout | Folder
    parts: Mapping[Role, Part] = field(default_factory=dict)
    rest: Mapping[str, Part] = field(default_factory=dict)  # top-level entries with no role

    @property
    def file(self) -> str:
        """The weights' file, safe to print."""
        return printable(self.archive.path)

    def value(self, role: Role) -> Any:
        """The plain value of a role, None where there is none."""
        part = self.parts.get(role)
        return part.value if part is not None else None

    def paths(self, role: Role) -> tuple[str, ...]:
        """The state dicts that play this role (model or ema) by the table, those that the file has."""
        if isinstance(self.layout, Folder):
            return ("",) if role == "model" else ()
        known = {s.path for s in self.archive.state_dicts}
        return tuple(p for p in self.layout.roles.get(role, ()) if p in known)


def open_training(path: str | os.PathLike[str]) -> Training:
    """Read a training status, a file or a folder, without tensor bytes. Raises :class:`ReadError`."""
    name = os.fspath(path)
    if os.path.isdir(name):
        return _folder(Path(name))
    return of_archive(open_checkpoint(name))


def of_archive(archive: Archive) -> Training:
    """The training status that one file holds."""
    root = archive.content.value if archive.content is not None else None
    if not isinstance(root, Mapping):
        return Training(archive, PLAIN)
    layout = next((row for row in LAYOUTS if all(at(root, p) is not _ABSENT for p in row.needs)), PLAIN)
    parts: dict[Role, Part] = {}
    for role, paths in layout.roles.items():
        found = next((p for p in paths if _plays(role, at(root, p))), None)
        if found is not None:
            parts[role] = Part(at(root, found), archive, found)
    numbers = ("epoch", "iteration")
    tops = {_first(p.path) for r, p in parts.items() if r not in numbers or _first(p.path) == p.path}
    weights = {s.path for s in archive.state_dicts}
    rest = {
        str(key): Part(value, archive, str(key))
        for key, value in root.items()
        if str(key) not in tops and str(key) not in weights and "" not in weights
    }
    return Training(archive, layout, parts, rest)


def _first(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def at(value: Any, path: str) -> Any:
    """The value at a dotted path inside plain values; a mark of absence (falsy for `is_there`) if none."""
    whole = value.get(path, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    if whole is not _ABSENT:
        return whole
    for match in _STEP.finditer(path):
        index, name = match[1], match[2]
        if isinstance(value, Opaque):
            value = value.attributes
        if name is not None and isinstance(value, Mapping) and name in value:
            value = value[name]
        elif index is not None and isinstance(value, list | tuple) and -len(value) <= int(index) < len(value):
            value = value[int(index)]
        else:
            return _ABSENT
    return value


def is_there(value: Any) -> bool:
    """Whether :func:`at` found something."""
    return value is not _ABSENT


def _plays(role: Role, value: Any) -> bool:
    """Whether a value can be what the table says it is: a step count is a number, an optimizer no number."""
    if value is _ABSENT or value is None:
        return False
    if role in ("epoch", "iteration"):
        return _number(value) is not None
    if role in ("model", "ema"):
        return isinstance(value, Mapping | Opaque)
    if role == "optimizer":
        return bool(optimizers(value)) or bool(value)
    return isinstance(value, Mapping | list | tuple)


def _number(value: Any) -> int | float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return None


def optimizers(value: Any) -> dict[str, Mapping[str, Any]]:
    """The optimizer states in a value, by name: one (named ``""``), a list of them, or a dict of them."""
    if is_optimizer(value):
        return {"": value}
    if isinstance(value, list | tuple):
        found = {str(i): v for i, v in enumerate(value)}
    elif isinstance(value, Mapping):
        found = {str(k): v for k, v in value.items()}
    else:
        return {}
    return found if found and all(is_optimizer(v) for v in found.values()) else {}


def is_optimizer(value: Any) -> bool:
    """``torch.optim.Optimizer.state_dict()``, whatever wrappers added to it."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("param_groups"), list)
        and isinstance(value.get("state"), Mapping)
    )


def _folder(folder: Path) -> Training:
    names = sorted(os.listdir(folder))
    row = next((f for f in FOLDERS if any(m in names for m in f.marks)), None)
    if row is None:
        return of_archive(open_checkpoint(folder))
    weights = next((w for w in row.weights if w in names), None)
    if weights is None:
        raise ReadError(
            f"{printable(str(folder))}: {row.name} without weights; expected one of {', '.join(row.weights)}"
        )
    archive = open_checkpoint(folder / weights)
    several = sorted(n for n in names if _NUMBERED.fullmatch(n))
    if several:
        raise ReadError(
            f"{printable(str(folder))}: {row.name} with several optimizers or schedulers "
            f"({', '.join(several)}); resume each with its own call, from a folder of its own"
        )
    parts: dict[Role, Part] = {}
    for role, files in row.files.items():
        found = next((f for f in files if f in names), None)
        if found is not None:
            parts[role] = _file_part(folder / found)
    rest = {name: _file_part(folder / name) for name in row.more if name in names}
    for role, (name, path) in row.numbers.items():
        number = _number(at(rest[name].value, path)) if name in rest else None
        if number is not None:
            parts[role] = Part(number, None, f"{name} {path}")
    return Training(archive, row, parts, rest)


def _file_part(path: Path) -> Part:
    if path.suffix == ".json":
        return Part(_json(path), None, path.name)
    archive = open_checkpoint(path)
    return Part(archive.content.value if archive.content is not None else None, archive, path.name)


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CorruptCheckpointError(f"{printable(str(path))}: too large for a JSON of numbers")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{printable(str(path))}: cannot be read ({error})") from None


def tensors(parts: Sequence[tuple[Part, Mapping[str, Leaf]]]) -> dict[str, Any]:
    """Read leaves of several parts into torch tensors, by the names given. Raises :class:`ReadError`."""
    made: dict[str, Any] = {}
    for part, leaves in parts:
        if part.archive is None:
            continue
        reader = leaf_reader(part.archive, leaves)
        try:
            made |= {name: reader(name) for name in leaves}
        finally:
            reader.close()
    return made


class NotPlain(CkptDoctorError):
    """A value holds an object of a class that the file names, which is never made."""


def plain(part: Part, value: Any) -> Any:
    """A plain value with its tensors read. Raises :class:`NotPlain` naming the class of an opaque object."""
    found: dict[str, Leaf] = {}
    known = {"argparse.Namespace", "types.SimpleNamespace"}

    def shape(node: Any, path: str) -> Any:
        if isinstance(node, Leaf):
            found[f"{len(found)}"] = node
            return _Slot(f"{len(found) - 1}")
        if isinstance(node, Mapping):
            return {k: shape(v, f"{path}.{k}") for k, v in node.items()}
        if isinstance(node, list | tuple | set | frozenset):
            return type(node)(shape(v, f"{path}[]") for v in node)
        if isinstance(node, Opaque):
            return opaque(node, path)
        return node

    def opaque(node: Opaque, path: str) -> Any:
        if node.what == "collections.Counter" and len(node.args) == 1 and isinstance(node.args[0], Mapping):
            return shape(node.args[0], path)
        if node.what == "torch.device" and node.args:
            return ":".join(str(a) for a in node.args)
        if node.what == "torch.Size" and len(node.args) == 1:
            return tuple(node.args[0])
        if node.what in known:
            return shape(node.attributes, path)
        raise NotPlain(f"{printable(path)} holds an object of the class {printable(node.what)}")

    outline = shape(value, part.path)
    made = tensors([(part, found)])

    def fill(node: Any) -> Any:
        if isinstance(node, _Slot):
            return made[node.name]
        if isinstance(node, dict):
            return {k: fill(v) for k, v in node.items()}
        if isinstance(node, list | tuple | set | frozenset):
            return type(node)(fill(v) for v in node)
        return node

    return fill(outline)


@dataclass(frozen=True)
class _Slot:
    name: str
