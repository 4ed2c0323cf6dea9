"""The commands at the end of a report: complete, and quoted so that they can be pasted."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from ckptdoctor.diagnosis import Diagnosis
from ckptdoctor.keys import printable

# Answers that lose nothing by being tried first; others name one of several and are only examples.
PLAIN_ANSWERS = ("--reinit", "--drop")


def commands(diagnosis: Diagnosis, kwargs: str = "") -> list[tuple[str, str]]:
    """(label, command) lines: what to do next."""
    base = _words(diagnosis, kwargs)
    if diagnosis.verdict == "repairable":
        out = _repaired_name(diagnosis.archive.path)
        return [("next: ", f"ckptdoctor repair {base} -o {_quote(out)}")]
    if diagnosis.verdict == "incompatible":
        if diagnosis.alignment is None:
            return [("next: ", f"ckptdoctor inspect {_quote(diagnosis.archive.path)}")]
        return [_diff(diagnosis)]
    return _answers(diagnosis, base)


def _diff(diagnosis: Diagnosis) -> tuple[str, str]:
    return "next: ", f"ckptdoctor diff {_quote(diagnosis.archive.path)} {_quote(diagnosis.target.label)}"


def _answers(diagnosis: Diagnosis, base: str) -> list[tuple[str, str]]:
    asked = [d for d in diagnosis.diagnostics if d.severity == "error" and d.fix is None and d.helps]
    answers: list[str] = []
    sure = bool(asked)
    for diagnostic in asked:
        flags = [h.command for h in diagnostic.helps if h.command.startswith("--")]
        plain = [f for f in flags if f.startswith(PLAIN_ANSWERS)]
        sure = sure and bool(plain)
        # Several plain flags of one finding belong together; of other kinds one is an example.
        answers += plain or flags[:1]
    if not answers and not diagnosis.loaded:
        return [_diff(diagnosis)]
    if not answers:
        return [("next: ", f"ckptdoctor diagnose {base} --expand")]
    command = f"ckptdoctor {'plan' if sure else 'diagnose'} {base} {' '.join(dict.fromkeys(answers))}"
    return [("next: " if sure else "e.g.: ", command)]


def more_command(diagnosis: Diagnosis) -> str:
    """``ckptdoctor explain CODE`` for the finding that needs it most, the last error."""
    errors = [d.code for d in diagnosis.diagnostics if d.severity == "error"]
    yours = [d.code for d in diagnosis.diagnostics if d.severity == "error" and d.fix is None] or errors
    return f"ckptdoctor explain {yours[-1]}" if yours else ""


def _words(diagnosis: Diagnosis, kwargs: str) -> str:
    words = [_quote(diagnosis.target.label), _quote(diagnosis.archive.path)]
    if kwargs:
        words += ["--kwargs", _quote(kwargs)]
    for decision in diagnosis.decisions:
        words += [f"--{decision.kind}", _quote(decision.value)]
    return " ".join(words)


def _quote(text: str) -> str:
    return shlex.quote(printable(text))


def _repaired_name(path: str) -> str:
    name = PurePath(path)
    suffix = ".safetensors" if name.suffix == ".safetensors" else ".pth"
    stem = name.name.removesuffix(".json").removesuffix(".index") if name.suffix == ".json" else name.stem
    return f"{stem}_repaired{suffix}"
