"""`ckptdoctor files`: whether the contract's files can be read at all. No torch, no model, no git."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ckptdoctor.contract import words
from ckptdoctor.contract.accepts import Accepts
from ckptdoctor.contract.files import WorkingTree
from ckptdoctor.contract.history import read_history
from ckptdoctor.contract.migration import read_migration
from ckptdoctor.contract.units import open_project
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.keys import printable
from ckptdoctor.plan import from_toml
from ckptdoctor.settings.model import read_settings
from ckptdoctor.targets.treefile import read_tree


def look_at(paths: Sequence[Path]) -> tuple[list[str], int]:
    """(what is wrong, how many files were read) of trees, plans, migrations and ``pyproject.toml``."""
    problems: list[str] = []
    read = 0
    for path in paths:
        if path.suffix == ".tree":
            problems += _try(path, lambda text, name: read_tree(text, name))
        elif path.name == "pyproject.toml":
            problems += _settings(path)
        elif path.suffix == ".toml":
            problems += _try(path, _plan)
        else:
            continue
        read += 1
    return problems, read


def look_around(folder: Path) -> tuple[list[str], list[Diagnostic], int]:
    """(what cannot be read, findings, how many files) of a whole project: every file, and every chain."""
    import datetime

    project = open_project(folder)
    Accepts(project, datetime.datetime.now(datetime.UTC).date())
    files = WorkingTree(project.root)
    problems: list[str] = []
    read = 1
    findings: list[Diagnostic] = []
    for unit in project.units:
        releases = [n for n in files.names(unit.releases) if n.endswith(".tree")]
        trees = [unit.lock, *(f"{unit.releases}/{name}" for name in releases)]
        there = [project.root / t for t in trees if (project.root / t).is_file()]
        wrong, count = look_at(there)
        history = read_history(files, unit)
        problems += wrong
        read += count + len(history.migrations)
        findings += [words.rewritten(problem) for problem in history.problems]
    return problems, findings, read


def _plan(text: str, name: str) -> None:
    if "\n[migration]\n" in text.replace("\r\n", "\n"):
        _ = read_migration(text, name).expansion
        return
    try:
        from_toml(text)
    except CkptDoctorError as error:
        raise type(error)(f"{printable(name)}: {error}") from None


def _settings(path: Path) -> Iterable[str]:
    try:
        read_settings(path)
    except CkptDoctorError as error:
        return [str(error)]
    return []


def _try(path: Path, read: Callable[[str, str], object]) -> Iterable[str]:
    try:
        read(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        return [f"{printable(str(path))} is no text: {error.reason} at byte {error.start}"]
    except (CkptDoctorError, OSError) as error:
        return [str(error)]
    return []
