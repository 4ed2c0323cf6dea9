"""Habits that hurt later, found in a file alone: CKD801 to CKD807, beside the readers' own findings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckptdoctor.diagnostics import Diagnostic, Fix, Help, Line
from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.formats.content import Leaf, Opaque
from ckptdoctor.keys import printable
from ckptdoctor.rules.words import count
from ckptdoctor.training.average import apart, averages
from ckptdoctor.training.source import of_archive
from ckptdoctor.wrappers import BY_SEGMENT, strip_key, wrapper_counts

NAMES = {
    "CKD801": "wrapped-keys",
    "CKD802": "optimizer-inside",
    "CKD803": "non-contiguous",
    "CKD804": "double-precision",
    "CKD805": "private-metadata",
    "CKD806": "no-metadata",
    "CKD807": "averages-apart",
}
# Findings of the readers that writing the file again removes.
REWRITTEN = frozenset({"CKD401", "CKD402", "CKD403", "CKD404"})
PLACE = re.compile(
    r"^(?:/(?:[^/\0\n]+/)+[^/\0\n]*|[A-Za-z]:[\\/](?:[^\\/\0\n]+[\\/])+[^\\/\0\n]*|file://.+)$"
)
PERSONAL = frozenset({"user", "username", "user_name", "hostname", "host", "email", "author_email"})
LONGEST = 4096  # characters of a path


@dataclass(frozen=True, slots=True)
class Private:
    """A text in the file that tells of the machine or the person it comes from."""

    path: str
    text: str
    better: str


def lint(archive: Archive, *, deep: bool = False) -> tuple[Diagnostic, ...]:
    """Everything in a file that will be regretted, each with the command that mends it.

    ``deep`` reads all values: checksums, NaN and infinity, how far averaged and trained weights are apart.
    """
    fix = f"ckptdoctor repair {shlex.quote(printable(archive.path))} --lint-fix -o OUT"
    found = [_with_fix(d, fix) for d in archive.diagnostics]
    if deep:
        from ckptdoctor.formats import deep_check

        found += deep_check(archive)
    found += [*_wrapped(archive, fix), *_optimizer(archive), *_strides(archive, fix), *_doubles(archive)]
    found += [*_private(archive, fix), *_metadata(archive, fix)]
    if deep:
        found += _apart(archive)
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda d: (order[d.severity], d.code)))


def _with_fix(diagnostic: Diagnostic, command: str) -> Diagnostic:
    from dataclasses import replace

    if diagnostic.code not in REWRITTEN or diagnostic.severity == "error":
        return diagnostic
    help_ = Help(command, "writes it again without")
    return replace(diagnostic, helps=(help_,), fix=None)


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _finding(code: str, severity: str, title: str, **more: object) -> Diagnostic:
    return Diagnostic(code, NAMES[code], severity, title, **more)  # type: ignore[arg-type]  # the callers' own fields


def removable(state_dict: StateDict) -> dict[str, str]:
    """Key -> name without wrappers, where all keys have the wrapper and no two become one; else nothing."""
    keys = list(state_dict.tree.specs)
    counts = wrapper_counts(keys)
    names = {k: strip_key(k) for k in keys}
    all_front = all(n == len(keys) for s, n in counts.items() if not BY_SEGMENT[s].anywhere)
    if not counts or not all_front or len(set(names.values())) != len(names):
        return {}
    return names


def _wrapped(archive: Archive, fix: str) -> Iterator[Diagnostic]:
    for state_dict in archive.state_dicts:
        counts = wrapper_counts(state_dict.tree.specs)
        if not counts:
            continue
        names = removable(state_dict)
        writers = ", ".join(dict.fromkeys(BY_SEGMENT[s].writer for s in counts))
        yield _finding(
            "CKD801",
            "warning",
            "wrapper names are in the keys: " + ", ".join(f"`{s}.` in {n:,}" for s, n in counts.items()),
            place=_place(archive, state_dict),
            evidence=tuple(Line(printable(k)) for k in list(state_dict.tree.specs)[:3]),
            why=f"written by {writers}; every model that is not wrapped the same way refuses them",
            fix=Fix("strip them", "safe") if names else None,
            notes=() if names else ("only some keys have them, so a model has to say which are its own",),
            helps=(Help(fix),) if names else (),
        )


def _place(archive: Archive, state_dict: StateDict) -> str:
    return archive.path + (f" [{state_dict.path}]" if state_dict.path else "")


def _optimizer(archive: Archive) -> Iterator[Diagnostic]:
    training = of_archive(archive)
    part = training.parts.get("optimizer")
    if part is None:
        return
    file = shlex.quote(printable(archive.path))
    yield _finding(
        "CKD802",
        "note",
        "the file holds an optimizer's state, which nobody needs who only uses the weights",
        place=archive.path,
        evidence=(Line(f"{printable(part.path)}: {printable(archive.rest.get(part.path, 'optimizer'))}"),),
        why="a release of the weights is half or a third of the size",
        helps=(Help(f"ckptdoctor strip {file} -o OUT", "writes the weights alone"),),
    )


def _strides(archive: Archive, fix: str) -> Iterator[Diagnostic]:
    keys = [k for s in archive.state_dicts for k, spec in s.tree.specs.items() if spec.strides is not None]
    if keys:
        yield _finding(
            "CKD803",
            "note",
            f"{count(len(keys), 'tensor')} {_are(len(keys))} not contiguous",
            place=archive.path,
            evidence=tuple(Line(printable(k)) for k in keys[:3]),
            why="safetensors refuses them, and views and flat buffers made of them are another layout",
            helps=(Help(fix),),
            keys=tuple(keys),
        )


def _doubles(archive: Archive) -> Iterator[Diagnostic]:
    for state_dict in archive.state_dicts:
        specs = state_dict.tree.specs
        doubles = [k for k, s in specs.items() if s.dtype == "float64"]
        singles = sum(s.dtype in ("float32", "float16", "bfloat16") for s in specs.values())
        if doubles and (singles > len(doubles) or len(doubles) == len(specs)):
            yield _finding(
                "CKD804",
                "note",
                f"{count(len(doubles), 'tensor')} {_are(len(doubles))} float64"
                + (f", {singles} of less" if singles else ""),
                place=_place(archive, state_dict),
                evidence=tuple(Line(printable(k)) for k in doubles[:3]),
                why="numpy makes float64 by default; it is often an accident, and doubles the size",
                helps=(
                    Help(
                        f"ckptdoctor repair MODEL {shlex.quote(printable(archive.path))} -o OUT",
                        "casts to the model's dtypes",
                    ),
                ),
                keys=tuple(doubles),
            )


def private_texts(archive: Archive) -> list[Private]:
    """Absolute paths and names of people and machines in what is not a tensor."""
    root = archive.content.value if archive.content is not None else None
    found: list[Private] = []
    stack: list[tuple[str, object, object]] = [("", None, root)]
    seen: set[int] = set()
    while stack:
        path, key, value = stack.pop()
        if isinstance(value, str):
            better = anonymous(key, value)
            if better != value:
                found.append(Private(path, value, better))
        elif isinstance(value, Leaf) or id(value) in seen:
            continue
        elif isinstance(value, Mapping):
            seen.add(id(value))
            stack.extend((f"{path}.{k}" if path else str(k), k, v) for k, v in value.items())
        elif isinstance(value, list | tuple):
            seen.add(id(value))
            stack.extend((f"{path}[{i}]", key, v) for i, v in enumerate(value))
        elif isinstance(value, Opaque):
            seen.add(id(value))
            text = posix(value)
            inside = value.attributes if text is None else {}
            stack.extend((f"{path}.{k}" if path else str(k), k, v) for k, v in inside.items())
            if text is not None and anonymous(key, text) != text:
                found.append(Private(path, text, anonymous(key, text)))
    return sorted(found, key=lambda p: p.path)


def posix(value: Opaque) -> str | None:
    """The text of a pickled ``pathlib`` path."""
    if not value.what.startswith("pathlib") or not all(isinstance(a, str) for a in value.args):
        return None
    first, *rest = value.args or (".",)
    return first + "/".join(rest) if first.endswith(("/", "\\")) else "/".join(map(str, value.args)) or "."


def anonymous(key: object, text: str) -> str:
    """The text without what is before the last part of a path; nothing for a name of a person or machine."""
    if isinstance(key, str) and key.lower() in PERSONAL and text:
        return ""
    if len(text) < LONGEST and PLACE.match(text):
        return re.split(r"[\\/]", text.rstrip("\\/"))[-1]
    return text


def _private(archive: Archive, fix: str) -> Iterator[Diagnostic]:
    found = private_texts(archive)
    if found:
        yield _finding(
            "CKD805",
            "warning",
            f"{count(len(found), 'entry tells', 'entries tell')} of the machine or the person that wrote the "
            "file",
            place=archive.path,
            evidence=tuple(Line(f"{printable(p.path)}: {printable(p.text)[:60]}") for p in found[:5]),
            why="absolute paths mean nothing elsewhere, and hold user and project names",
            fix=Fix("keep the last part of each path", "unsafe"),
            helps=(Help(fix),),
        )


def _metadata(archive: Archive, fix: str) -> Iterator[Diagnostic]:
    for state_dict in archive.state_dicts:
        norms = [k for k in state_dict.tree.specs if k.endswith("num_batches_tracked")]
        if norms and not state_dict.tree.versions and archive.format in ("torch-zip", "torch-legacy"):
            yield _finding(
                "CKD806",
                "note",
                "the state dict lost its `_metadata`, the versions of the modules that wrote it",
                place=_place(archive, state_dict),
                why="a dict comprehension drops them; modules that convert old values take it for old",
                helps=(Help(fix),),
            )


def _apart(archive: Archive) -> Iterator[Diagnostic]:
    training = of_archive(archive)
    pairs = [(r, e) for r in training.paths("model")[:1] for e in training.paths("ema")]
    pairs += [(s.path.removesuffix("[ema]"), s.path) for s in averages(archive)]
    for raw, average in pairs:
        yield _finding(
            "CKD807",
            "note",
            f"`{printable(average)}` holds averaged weights beside the trained `{printable(raw)}`",
            place=archive.path,
            evidence=(Line(str(apart(archive, raw, average))),),
            why="both load without an error; for inference one usually wants the average, to go on the other",
            helps=(Help(f"ckptdoctor extract {shlex.quote(printable(archive.path))} --choose ema -o OUT"),),
        )
