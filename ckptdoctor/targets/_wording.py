"""Messages for models that cannot be read: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import json
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.targets._paths import is_installed, shown_path
from ckptdoctor.targets._text import listing, printable

if TYPE_CHECKING:
    from ckptdoctor.targets._process import Outcome
    from ckptdoctor.targets.base import Target
    from ckptdoctor.targets.source import Source

OUTPUT_LINES = 8
_DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn",
                  "skimage": "scikit-image", "torch_geometric": "torch-geometric"}  # fmt: skip
_NETWORK = {"URLError", "HTTPError", "ConnectionError", "ConnectTimeout", "gaierror", "OfflineModeIsEnabled",
            "LocalEntryNotFoundError"}  # fmt: skip
_SAMPLES = {"int": 10, "float": 0.1, "bool": True, "str": "...", "list": [], "tuple": [], "dict": {}}


def failure(source: Source, outcome: Outcome, timeout: float) -> str:
    """Why one run of the worker gave no model."""
    refused = next((e for e in outcome.events if e["event"] == "refused"), None)
    if refused is None:
        return _death(source, outcome, timeout) + _output(outcome)
    words = refusal(source, outcome.last_stage, refused)
    return words + (_output(outcome) if refused["kind"] in ("raised", "exit", "no torch") else "")


def refusal(source: Source, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    """Why a model was refused, from the worker's event."""
    name = event.get("name") or stage.get("name") or source.name
    label = printable(source.label(name)) if name else printable(source.text)
    word = _WORDS.get(event["kind"], _raised)
    return word(source, label, stage, event)


def no_models(source: Source, names: Sequence[str]) -> str:
    """A file in which nothing looks like a model."""
    text = printable(source.text)
    hint = f" Name what to build, for example `{text}:{names[0]}`; it has {listing(names)}." if names else ""
    return (
        f"{text} defines no model: no nn.Module class, no module-level instance and no function that "
        f"returns one.{hint}"
    )


def nothing_built(source: Source, failed: Sequence[Mapping[str, Any]]) -> str:
    """A file whose models all need something."""
    if len(failed) == 1:
        return failed_words(source, failed[0])
    rows = "\n".join(f"  {failed_words(source, event)}" for event in failed)
    return f"{printable(source.text)}: none of its {len(failed)} models can be built as it is:\n{rows}"


def not_built(source: Source, failed: Sequence[Mapping[str, Any]]) -> str:
    """One note on the models of a file that were left out."""
    names = [printable(source.label(e["name"])) for e in failed]
    return f"not considered, because they could not be built as they are: {listing(names)}"


def failed_words(source: Source, event: Mapping[str, Any]) -> str:
    """Why one candidate could not be built."""
    return str(event["words"]) if event["kind"] == "died" else refusal(source, {}, event)


def several(source: Source, targets: Sequence[Target], failed: Sequence[Mapping[str, Any]]) -> str:
    """More than one model fits the words."""
    width = max(len(printable(t.label)) for t in targets)
    rows = [f"  {printable(t.label):{width}}  {len(t.tree)} tensors, {t.place}" for t in targets[:20]]
    if len(targets) > 20:
        rows.append(f"  and {len(targets) - 20} more")
    if failed:
        rows.append(f"  ({not_built(source, failed)})")
    return f"{printable(source.text)} holds {len(targets)} models; name the one that is meant:\n" + "\n".join(
        rows
    )


def syntax_error(shown: str, error: SyntaxError) -> str:
    """Python's own complaint, in our form."""
    code = f"\n  | {printable(error.text.strip())}" if error.text else ""
    return f"{shown}:{error.lineno or 1}: syntax error: {printable(error.msg)}{code}"


def near_files(path: Path) -> str:
    """``; did you mean ...?`` from the file names beside a path that does not exist."""
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {printable(str(folder))}"
    names = [p.name for p in folder.iterdir() if p.suffix == ".py"]
    close = difflib.get_close_matches(path.name, names, n=3) or sorted(names)[:3]
    return f"; beside it there is {listing(str(folder / n) for n in close)}" if close else ""


def on_cpu(event: Mapping[str, Any]) -> str:
    """A note for a model that could not be built on meta, from what was raised there."""
    message = re.split(r"[.!:]\s|\n", event["message"])[0]
    return f"built on the CPU, not on meta: {_at(event)}{event['type']}: {printable(message)}"


def _arguments(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    missing, unknown, takes = event["missing"], event["unknown"], event["takes"]
    parts = []
    if unknown:
        close = difflib.get_close_matches(unknown[0], takes, n=1)
        taken = f"did you mean `{printable(close[0])}`? It takes" if close else "it takes"
        parts.append(
            f"`{label}` does not take {listing(unknown)}; {taken} {listing(takes) or 'no arguments'}"
        )
    if missing:
        values = {name: _sample(annotation) for name, annotation in missing}
        parts.append(
            f"`{label}` needs {'an argument' if len(missing) == 1 else 'arguments'}: "
            f"{listing(name for name, _ in missing)}; say --kwargs '{json.dumps(values)}' with the right "
            "values, or name a function without arguments that builds it"
        )
    return ". ".join(parts)


def _sample(annotation: str) -> object:
    plain = re.split(r"[\[| ]", annotation)[0].lower() if annotation else "int"
    return _SAMPLES.get(plain, "..." if annotation else 10)


def _no_attribute(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    names, part = event["names"], event["part"]
    close = difflib.get_close_matches(part, names, n=3, cutoff=0.5)
    prefix = event["owner"] + "." if event["owner"] else ""
    where = f"{printable(source.text)}{':' + printable(event['owner']) if event['owner'] else ''}"
    if close:
        meant = listing(source.label(prefix + n) for n in close)
        return f"{where} has no `{printable(part)}`; did you mean {meant}?"
    return f"{where} has no `{printable(part)}`; it has {listing(names) or 'no public names'}"


def _not_a_module(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    verb = "returns" if event["called"] else "is"
    return (
        f"`{label}` {verb} {event['value']}, not an nn.Module; name a class, an instance or a function that "
        "returns the model alone"
    )


def _instance(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    return f"`{label}` is a model already, so --kwargs has nothing to act on; leave it out or name the class"


def _unreadable(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    return f"`{label}`: {event['message']}"


def _not_tried(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    return f"`{label}` was not tried, the time was over; name it, or give more with --timeout"


def _no_torch(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    if event["missing"]:
        return (
            f"building a model needs torch, and {sys.executable} has none: pip install 'ckptdoctor[torch]', "
            "or give a reference checkpoint or a .tree file as the model"
        )
    return f"torch cannot be imported: {event['type']}: {printable(event['message'])}"


def _exit(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    return (
        f"{_at(event)}{label} calls sys.exit({printable(event['message'])}) while {_doing(stage, label)}; "
        "put what should only run as a script under `if __name__ == '__main__':`" + _code(event)
    )


def _raised(source: Source, label: str, stage: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    if event.get("module"):
        return _missing_package(event)
    if event["type"] in ("SyntaxError", "IndentationError", "TabError"):
        return f"{event['at']}:{event['line_at']}: syntax error: {printable(event['message'])}{_code(event)}"
    first, _, rest = event["message"].partition("\n")
    more = f" ({len(rest.splitlines())} more lines)" if rest.strip() else ""
    notes = "".join(f"\n  {printable(note)}" for note in event["notes"])
    if event["type"] in _NETWORK:
        notes += (
            "\n  a tree needs no pretrained weights: keep it from downloading, "
            "for example with --kwargs '{\"pretrained\": false}'"
        )
    return (
        f"{_at(event)}{_doing(stage, label)} raises {event['type']}: {printable(first)}{more}"
        f"{_code(event)}{notes}"
    )


def _missing_package(event: Mapping[str, Any]) -> str:
    name = printable(event["module"])
    top = name.split(".")[0]
    return (
        f"{_at(event)}no module named `{name}` for {sys.executable}{_code(event)}\n"
        f"  if it is a package: pip install {_DISTRIBUTIONS.get(top, top)}\n"
        "  if it is your own code: run from the folder that holds it, or set PYTHONPATH"
    )


_WORDS = {
    "arguments": _arguments,
    "no attribute": _no_attribute,
    "not a module": _not_a_module,
    "instance takes no kwargs": _instance,
    "unreadable": _unreadable,
    "not tried": _not_tried,
    "no torch": _no_torch,
    "exit": _exit,
    "raised": _raised,
}


def _death(source: Source, outcome: Outcome, timeout: float) -> str:
    stage = outcome.last_stage
    doing = printable(stage["doing"])
    at = _faulthandler_line(outcome.dump)
    if outcome.timed_out:
        return (
            f"{at}{doing} took more than {timeout:g} s; give it more with --timeout {max(2 * timeout, 10):g}"
        )
    code = outcome.returncode
    if code is not None and code < 0:
        name = _signal_name(-code)
        why = " (the system may have run out of memory)" if name == "SIGKILL" else ""
        return f"{at}Python was ended by {name}{why} while {doing}"
    return f"{at}Python ended with exit code {code} and without an error while {doing} (os._exit()?)"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _faulthandler_line(dump: str) -> str:
    """``file:line: `` of the user's innermost frame, from what faulthandler wrote."""
    threads = re.split(r"^(?=(?:Current thread|Thread) 0x)", dump, flags=re.MULTILINE)
    # The thread that crashed is the current one; of those that hang the main one, which comes last.
    thread = next((t for t in threads if t.startswith("Current")), threads[-1])
    package = str(Path(__file__).parent)
    for file, line in re.findall(r'^  File "([^"\n]+)", line (\d+)', thread, re.MULTILINE):
        if not file.startswith((package, "<")) and not is_installed(file):
            return f"{printable(shown_path(file))}:{line}: "
    return ""


def _output(outcome: Outcome) -> str:
    """The last lines that the user's code printed, set apart from ours."""
    lines = [line for line in outcome.output.splitlines() if line.strip()][-OUTPUT_LINES:]
    if not lines:
        return ""
    return "\n  it printed last:\n" + "\n".join(f"  | {printable(line)}" for line in lines)


def _at(event: Mapping[str, Any]) -> str:
    return f"{printable(event['at'])}:{event['line_at']}: " if event["at"] else ""


def _code(event: Mapping[str, Any]) -> str:
    return f"\n  | {printable(event['code'])}" if event["code"] else ""


def _doing(stage: Mapping[str, Any], label: str) -> str:
    return printable(stage["doing"]) if stage.get("doing") else f"building {label}"
