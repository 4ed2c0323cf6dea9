"""Checkpoints that a repository itself holds: each has to load strictly into its model, as it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ckptdoctor.contract import words
from ckptdoctor.contract.units import Project, Unit
from ckptdoctor.diagnosis import Diagnosis, examine
from ckptdoctor.diagnostics import Diagnostic, Help, Line
from ckptdoctor.errors import ReadError
from ckptdoctor.formats import open_checkpoint
from ckptdoctor.keys import printable
from ckptdoctor.targets import Target
from ckptdoctor.trees import ParamTree

_DTYPES = "CKD303"  # another dtype than the model's: torch casts it without a word


@dataclass
class Found:
    """How many files there were, what is wrong with them, and which could not be read."""

    files: int = 0
    findings: list[tuple[str, Diagnostic]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_artifacts(project: Project, trees: Mapping[Unit, ParamTree]) -> Found:
    """Look at every file that the settings' ``artifacts`` name, without executing anything in it."""
    found = Found()
    for file, units in _files(project, trees).items():
        found.files += 1
        try:
            seen = [(u, *_look(project, file, u, trees[u])) for u in units]
        except ReadError as error:
            found.problems.append(str(error))
            continue
        # A file of one variant need not fit the others.
        if any(not wrong for _, _, wrong in seen):
            continue
        unit, diagnosis, wrong = max(seen, key=lambda row: row[1].coverage)
        found.findings.append((unit.name, _finding(file, unit, diagnosis, wrong)))
    return found


def _files(project: Project, trees: Mapping[Unit, ParamTree]) -> dict[str, list[Unit]]:
    files: dict[str, list[Unit]] = {}
    for unit in trees:
        for pattern in unit.model.artifacts:
            for path in sorted(project.root.glob(pattern)):
                if path.is_file():
                    files.setdefault(path.relative_to(project.root).as_posix(), []).append(unit)
    return files


def _look(project: Project, file: str, unit: Unit, tree: ParamTree) -> tuple[Diagnosis, list[Diagnostic]]:
    archive = open_checkpoint(project.root / file)
    diagnosis = examine(archive, Target(tree, unit.model.entry))
    return diagnosis, list(_wrong(diagnosis, unit))


def _wrong(diagnosis: Diagnosis, unit: Unit) -> Iterator[Diagnostic]:
    """What speaks against publishing the file: every finding of every rule, a lint's among them.

    `examine` asks all rules of `ckptdoctor.rules`, so a new one counts here without being named.
    """
    for diagnostic in diagnosis.diagnostics:
        if diagnostic.code == _DTYPES:
            dtypes = (
                {s.dtype for s in diagnosis.source.specs.values()} if diagnosis.source is not None else set()
            )
            wanted = {s.dtype for s in diagnosis.target.tree.specs.values()}
            if not dtypes - wanted <= set(unit.model.artifact_dtypes):
                yield diagnostic
        elif diagnostic.severity != "note":
            yield diagnostic


def _finding(file: str, unit: Unit, diagnosis: Diagnosis, wrong: Sequence[Diagnostic]) -> Diagnostic:
    shown = printable(file)
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    helps = []
    if diagnosis.verdict == "repairable":
        out = f"{shown.rpartition('.')[0]}_repaired.{shown.rpartition('.')[2]}"
        entry = shlex.quote(unit.model.entry)
        helps = [
            Help(f"ckptdoctor repair {entry} {shlex.quote(shown)} -o {shlex.quote(out)}", "a plain file")
        ]
    else:
        helps = [
            Help(
                f"ckptdoctor diagnose {shlex.quote(unit.model.entry)} {shlex.quote(shown)}",
                "the whole report",
            )
        ]
    return words.artifact(
        shown,
        f"{shown} is not ready to be published: {wrong[0].title}{more}",
        f"it has to load strictly into `{unit.name}` as it is",
        [Line(f"{d.code} {d.title}") for d in wrong],
        helps,
    )
