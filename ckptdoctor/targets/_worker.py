"""The process in which the user's code runs. Reads one request from stdin, answers with events.

An event is one line on what was stdout, behind a token from the request; what is there without a token
is faulthandler's, when the process hangs or dies. Everything that the user's
code prints, to stdout as well, goes to stderr. The process ends without any clean-up of the user's.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import linecache
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from ckptdoctor.targets._finding import Candidate

Event = dict[str, Any]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CANDIDATE_SHARE = 0.6  # of the time; the rest of a file's candidates is then named as not tried


class _Refusal(Exception):
    """Ends the work on one model; ``event`` says why."""

    def __init__(self, kind: str, **facts: Any) -> None:
        super().__init__(kind)
        self.event: Event = {"kind": kind, **facts}


def main() -> NoReturn:
    """Entry of ``python -c``; ends the process."""
    channel, request = _open()
    # On the channel: what the user's threads print at the same time cannot get between its words there.
    faulthandler.enable(file=channel)
    faulthandler.dump_traceback_later(float(request["timeout"]), exit=True, file=channel)
    gc.disable()  # the process is short, and collecting would walk every object that torch imports

    def send(event: str, **facts: Any) -> None:
        channel.write(request["token"] + json.dumps({"event": event, **facts}) + "\n")
        channel.flush()

    try:
        _work(request, send)
        send("done")
    except _Refusal as refusal:
        send("refused", **refusal.event)
    except BaseException as error:
        send("refused", **_raised(error))
    sys.stderr.flush()
    os._exit(0)


def _open() -> tuple[TextIO, Mapping[str, Any]]:
    request = json.loads(sys.stdin.buffer.read())
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    return channel, request


def _work(request: Mapping[str, Any], send: Callable[..., None]) -> None:
    send("stage", doing="importing torch")
    try:
        import torch
    except BaseException as error:
        raise _Refusal(
            "no torch", missing=_missing_module(error) == "torch", **_raised(error, "cause")
        ) from error
    from ckptdoctor.targets import _building, _finding

    _building.prepare()
    if request.get("root"):
        os.chdir(request["root"])
    recorder = None
    if request.get("record"):
        from ckptdoctor.targets._recording import Recorder

        recorder = Recorder()
        recorder.start()
    # The folder of the user's code and the working directory, as for `python file` and `python -m`.
    sys.path.insert(0, os.getcwd())
    sys.dont_write_bytecode = True  # a check leaves nothing behind in the user's folders
    send("stage", doing=f"importing {request['source']}")
    sys.argv = [request["file"] or request["module"]]
    # Values of module-level models are not looked at, unless it is values that are asked for.
    torch.manual_seed(_building.SEED)
    real = request.get("values") or request.get("probe")
    with nullcontext() if real else _building.skipping_random_init():
        if request["file"]:
            module = _finding.import_file(Path(request["file"]))
        else:
            module = _import_dotted(request["module"])
    if request["name"]:
        candidate = _named(module, request["name"])
        send("stage", doing=f"building {request['name']}", name=candidate.name)
        if real:
            _save(candidate, request, send)
            return
        send("built", **_built(candidate, request["kwargs"]))
        if recorder is not None:
            send("inputs", **recorder.inputs().to_dict())
    else:
        _try_all(module, request, send)


def _save(candidate: Candidate, request: Mapping[str, Any], send: Callable[..., None]) -> None:
    from ckptdoctor.targets.outputs import save_outputs
    from ckptdoctor.targets.values import save_values

    if request.get("values"):
        save_values(candidate, request)
    else:
        send("stage", doing=f"running {request['name']} on the probe", name=candidate.name)
        save_outputs(candidate, request)
    send("saved")


def _import_dotted(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def _try_all(module: Any, request: Mapping[str, Any], send: Callable[..., None]) -> None:
    from ckptdoctor.targets import _finding

    stop_at = time.monotonic() + float(request["timeout"]) * _CANDIDATE_SHARE
    found = _finding.candidates(module)
    if not found:
        send("imported", names=_module_names(module))
    for candidate in found:
        where = {"name": candidate.name, "how": candidate.how, "line": candidate.line}
        if candidate.name in request["skip"]:
            continue
        send("stage", doing=f"building {candidate.name}", **where)
        try:
            if time.monotonic() > stop_at:
                raise _Refusal("not tried")
            send("built", **_built(candidate, request["kwargs"]))
        except _Refusal as refusal:
            send("failed", **where, **refusal.event)
        except BaseException as error:
            send("failed", **where, **_raised(error))


def _named(module: Any, dotted: str) -> Candidate:
    from ckptdoctor.targets import _finding

    thing = module
    for i, part in enumerate(dotted.split(".")):
        holder = thing
        try:
            thing = getattr(thing, part)
        except AttributeError:
            owner = ".".join(dotted.split(".")[:i])
            raise _Refusal("no attribute", owner=owner, part=part, names=_module_names(holder)) from None
    return _finding.candidate(module, dotted, thing)


def _module_names(holder: Any) -> list[str]:
    """Public names in ``holder`` that are or make models, else all public names."""
    import torch

    names = [n for n in dir(holder) if not n.startswith("_")]

    def fits(thing: Any) -> bool:
        return isinstance(thing, torch.nn.Module) or (
            isinstance(thing, type) and issubclass(thing, torch.nn.Module)
        )

    models = [n for n in names if fits(getattr(holder, n, None))]
    local = getattr(holder, "__name__", None)
    functions = [
        n
        for n in names
        if callable(getattr(holder, n, None)) and getattr(getattr(holder, n), "__module__", "") == local
    ]
    return models + [n for n in functions if n not in models]


def _built(candidate: Candidate, kwargs: Mapping[str, Any]) -> Event:
    """Build the candidate and describe the result; raises ``_Refusal`` or what the user's code raises."""
    from ckptdoctor.errors import TargetError
    from ckptdoctor.targets import _lines, _paths, _wire
    from ckptdoctor.targets.module import snapshot
    from ckptdoctor.targets.survey import walk_modules

    model, reason = _make(candidate, kwargs)
    try:
        tree = snapshot(model)
    except TargetError as error:
        raise _Refusal("unreadable", message=str(error)) from error
    return {
        "name": candidate.name,
        "how": candidate.how,
        "place": f"{_paths.shown_path(candidate.file)}:{candidate.line}" if candidate.file else "",
        "line": candidate.line,
        "tree": _wire.encode(tree),
        "lines": _lines.class_lines(model),
        "root": _qualified(model),
        "inner": sorted({_qualified(m) for path, m in walk_modules(model) if path}),
        "reason": reason,
    }


def _make(candidate: Candidate, kwargs: Mapping[str, Any]) -> tuple[Any, Event | None]:
    import torch

    from ckptdoctor.targets import _building, _finding
    from ckptdoctor.targets._text import describe

    thing = candidate.thing
    if isinstance(thing, torch.nn.Module):
        if kwargs:
            raise _Refusal("instance takes no kwargs")
        return thing, None
    if not callable(thing):
        raise _Refusal("not a module", value=describe(thing), called=False)
    missing, unknown, takes = _finding.needs(thing, kwargs)
    if missing or unknown:
        raise _Refusal("arguments", missing=missing, unknown=unknown, takes=takes)
    model, failure = _building.build(lambda: thing(**kwargs))
    if not isinstance(model, torch.nn.Module):
        raise _Refusal("not a module", value=describe(model), called=True)
    return model, _raised(failure) if failure is not None else None


def _qualified(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _missing_module(error: BaseException) -> str:
    return (error.name or "") if isinstance(error, ModuleNotFoundError) else ""


def _raised(error: BaseException, prefix: str = "") -> Event:
    """What was raised and the line of the user's code that it came from."""
    file, line, code = _user_line(error)
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    facts = {
        "type": type(error).__name__,
        "message": message[:4000],
        "at": file,
        "line_at": line,
        "code": code,
        "module": _missing_module(error),
        "notes": [str(note)[:1000] for note in getattr(error, "__notes__", ())],
    }
    if prefix:
        return facts
    return {"kind": "exit" if isinstance(error, SystemExit) else "raised", **facts}


def _user_line(error: BaseException) -> tuple[str, int, str]:
    """The innermost frame outside of this package, of torch and of other installed packages."""
    from ckptdoctor.targets import _paths

    if isinstance(error, SyntaxError) and error.filename:
        return _paths.shown_path(error.filename), error.lineno or 0, (error.text or "").strip()
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith((_PACKAGE, "<"))
    ]
    own = [f for f in frames if not _paths.is_installed(f[0])]
    # Packages may lie anywhere (PYTHONPATH); what lies below the working directory is more likely theirs.
    nearby = [f for f in own if not os.path.isabs(_paths.shown_path(f[0]))]
    if not own:
        return "", 0, ""
    file, line = (nearby or own)[-1]
    return _paths.shown_path(file), line, linecache.getline(file, line).strip()
