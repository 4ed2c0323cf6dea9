"""Models given as source: ``model.py``, ``model.py:name``, ``package.module:name``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptdoctor.errors import TargetError
from ckptdoctor.targets import _process, _wire, _wording
from ckptdoctor.targets._text import describe, printable
from ckptdoctor.targets.base import Prefer, Target
from ckptdoctor.targets.inputs import Inputs

MAX_RESTARTS = 3  # after candidates that took the whole process down

_FILE = re.compile(r"(?P<file>.*\.py)(?::(?P<name>[^:]*))?", re.DOTALL)
_DOTTED = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Source:
    """Where a model's code is: a file or an importable module, and a name in it ("": find one)."""

    file: str = ""
    module: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """The file or module as the user gave it."""
        return self.file or self.module

    def label(self, name: str) -> str:
        """What selects ``name`` on the command line."""
        return f"{self.text}:{name}"


def parse_source(text: str) -> Source | None:
    """The source that ``text`` names, or ``None`` when it is no source.

    >>> parse_source("nets/model.py:Net")
    Source(file='nets/model.py', module='', name='Net')
    >>> parse_source("torchvision.models:resnet18").module
    'torchvision.models'
    """
    found = _FILE.fullmatch(text)
    if found:
        return Source(file=found["file"], name=found["name"] or "")
    found = _DOTTED.fullmatch(text)
    return Source(module=found["module"], name=found["name"]) if found else None


def load_source(
    source: Source,
    *,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60,
    prefer: Prefer | None = None,
) -> Target:
    """Build the model in a subprocess, on the meta device where that works, and return its tree.

    ``kwargs`` are the constructor's arguments, plain JSON. Without a name every model of the file that
    can be built is a candidate; ``prefer`` chooses when there are several. Raises ``TargetError``.
    """
    request = checked_request(source, kwargs, timeout)
    if source.name:
        outcome = _process.run(request, timeout)
        built = [e for e in outcome.events if e["event"] == "built"]
        if not built:
            raise TargetError(_wording.failure(source, outcome, timeout))
        return _target(source, built[0])
    found, failed = _all_candidates(source, request, timeout)
    return _choose(source, found, failed, prefer)


def build_recorded(
    entry: str, root: Path, kwargs: Mapping[str, Any] | None, timeout: float
) -> tuple[Target, Inputs | None]:
    """Build ``model.py:name`` or ``package.module:name`` as seen from the folder ``root``.

    Also says everything that the build has read. Raises ``TargetError``.
    """
    source = parse_source(entry)
    if source is None or not source.name:
        raise TargetError(
            f"`{printable(entry)}` names no model in source; expected model.py:name or package.module:name"
        )
    here = replace(source, file=str(root / source.file)) if source.file else source
    request = {**checked_request(here, kwargs, timeout), "root": str(root), "record": True}
    outcome = _process.run(request, timeout)
    built = [e for e in outcome.events if e["event"] == "built"]
    if not built:
        raise TargetError(_wording.failure(source, outcome, timeout))
    facts = next((e for e in outcome.events if e["event"] == "inputs"), None)
    inputs = Inputs.from_dict({k: v for k, v in facts.items() if k != "event"}) if facts else None
    return _target(source, built[0]), inputs


def checked_request(source: Source, kwargs: Mapping[str, Any] | None, timeout: float) -> dict[str, Any]:
    """What the worker is asked; refuses what would fail after the seconds that torch takes to import."""
    arguments = _checked_kwargs(kwargs)
    if timeout <= 0:
        raise TargetError(f"the timeout is {timeout} seconds; it has to be above 0")
    path = _checked_file(source) if source.file else None
    return {
        "file": str(path or ""),
        "module": source.module,
        "name": source.name,
        "source": source.text,
        "kwargs": arguments,
        "skip": [],
    }


def _checked_kwargs(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TargetError(
            f"the model's arguments are {describe(kwargs)}, not a mapping; "
            "say --kwargs '{\"num_classes\": 10}'"
        )
    arguments = dict(kwargs or {})
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"the model's arguments have to be plain JSON: {printable(str(error))}. For anything else write "
            "a factory function without arguments and name it, as in `model.py:build`"
        ) from None
    return arguments


def _checked_file(source: Source) -> Path:
    """The absolute path; refuses at once what would fail after the seconds that torch takes to import."""
    path, shown = Path(source.file), printable(source.file)
    if not path.exists():
        raise TargetError(f"{shown} does not exist{_wording.near_files(path)}")
    if not path.is_file():
        raise TargetError(f"{shown} is not a file")
    if source.name and not _NAME.fullmatch(source.name):
        raise TargetError(
            f"`{printable(source.name)}` is not a name; write `{shown}:Net` or `{shown}:models.build`"
        )
    try:
        ast.parse(path.read_bytes(), filename=source.file)
    except SyntaxError as error:
        raise TargetError(_wording.syntax_error(shown, error)) from None
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{shown} is not Python source: {printable(str(error))}") from None
    except OSError as error:
        raise TargetError(f"{shown} cannot be read: {error.strerror}") from None
    return path.resolve()


def _all_candidates(
    source: Source, request: dict[str, Any], timeout: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Events of what was built and of what was not, those included that took the worker down."""
    built: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for _ in range(1 + MAX_RESTARTS):
        outcome = _process.run(request, timeout)
        built += [e for e in outcome.events if e["event"] == "built"]
        failed += [e for e in outcome.events if e["event"] == "failed"]
        culprit = outcome.last_stage
        if outcome.events and outcome.events[-1]["event"] == "done":
            if not built and not failed:
                names: list[str] = next((e["names"] for e in outcome.events if e["event"] == "imported"), [])
                raise TargetError(_wording.no_models(source, names))
            return built, failed
        if "name" not in culprit:
            raise TargetError(_wording.failure(source, outcome, timeout))
        failed.append({**culprit, "kind": "died", "words": _wording.failure(source, outcome, timeout)})
        request["skip"] = [e["name"] for e in (*built, *failed)]
    return built, failed


def _target(source: Source, event: Mapping[str, Any]) -> Target:
    notes: tuple[str, ...] = ()
    if event["reason"]:
        notes = (_wording.on_cpu(event["reason"]),)
    return Target(
        tree=_wire.decode(event["tree"]),
        label=source.label(event["name"]),
        place=event["place"],
        lines=event["lines"],
        notes=notes,
    )


def _choose(
    source: Source,
    built: Sequence[Mapping[str, Any]],
    failed: Sequence[Mapping[str, Any]],
    prefer: Prefer | None,
) -> Target:
    targets = [_target(source, event) for event in _ranked(built)]
    if not targets:
        raise TargetError(_wording.nothing_built(source, failed))
    if failed:
        note = _wording.not_built(source, failed)
        targets = [replace(t, notes=(*t.notes, note)) for t in targets]
    if len(targets) == 1:
        return targets[0]
    chosen = prefer(targets) if prefer is not None else None
    if chosen is None:
        raise TargetError(_wording.several(source, targets, failed))
    return replace(targets[chosen], candidates=tuple(targets))


def _ranked(built: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without duplicates and empty ones; whole models before parts of them, larger ones first."""
    order = {"instance": 0, "function": 1, "class": 2}
    distinct: dict[str, Mapping[str, Any]] = {}
    for event in sorted(built, key=lambda e: (order[e["how"]], e.get("line", 0))):
        tree = event["tree"]
        same = json.dumps([event["root"], tree["specs"], tree["modules"]])
        distinct.setdefault(same, event)
    inner = {name for event in distinct.values() for name in event["inner"]}
    events = [e for e in distinct.values() if e["tree"]["specs"]] or list(distinct.values())
    return sorted(events, key=lambda e: (e["root"] in inner, -len(e["tree"]["specs"])))
