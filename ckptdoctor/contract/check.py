"""The pre-merge check: HEAD's models against their locks, their releases and their migrations."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptdoctor.contract import words
from ckptdoctor.contract.accepts import Finding
from ckptdoctor.contract.artifacts import check_artifacts
from ckptdoctor.contract.build import Head
from ckptdoctor.contract.files import GitTree
from ckptdoctor.contract.history import read_history, read_releases
from ckptdoctor.contract.migration import HEAD_FILE, text_digest
from ckptdoctor.contract.releases import check_releases
from ckptdoctor.contract.report import CheckReport
from ckptdoctor.contract.units import Unit, units_of
from ckptdoctor.contract.work import Work, open_work
from ckptdoctor.errors import CkptDoctorError, SettingsError
from ckptdoctor.settings.model import parse_settings
from ckptdoctor.targets.treefile import TreeFileError, read_tree, write_tree
from ckptdoctor.trees import ParamTree


def check_project(
    folder: Path,
    *,
    against: str | None = None,
    build: bool = True,
    model: str | None = None,
    today: datetime.date | None = None,
    given: Sequence[Head] = (),
) -> CheckReport:
    """Run every step; see :func:`ckptdoctor.check`. ``given`` are trees of models that exist already."""
    work = open_work(folder, against=against, build=build, model=model, today=today, given=given)
    for step in STEPS:
        step(work)
    return work.report()


def check_locks(work: Work) -> None:
    """Step 1 and 2: what the code builds is what is committed."""
    work.problems += [h.problem for h in work.heads if h.tree is None]
    for head in work.heads:
        try:
            text = work.files.read(head.unit.lock)
        except CkptDoctorError as error:
            work.problems.append(str(error))
            continue
        if text is not None:
            work.places.add(head.unit.lock, text)
        if head.tree is not None:
            _check_lock(work, head.unit, head.tree, text)


def _check_lock(work: Work, unit: Unit, tree: ParamTree, text: str | None) -> None:
    if text is not None and text.replace("\r\n", "\n") == write_tree(tree):
        return
    try:
        if text is not None:
            read_tree(text, unit.lock)
    except TreeFileError as error:
        work.find(words.unreadable_lock(unit, error), unit.name)
        return
    work.find(words.stale_lock(unit, text, tree), unit.name)


def check_variants(work: Work) -> None:
    """A variant that changes nothing checks nothing."""
    seen: dict[tuple[str, str], Unit] = {}
    for head in work.heads:
        if head.tree is None:
            continue
        key = (head.unit.model.name, write_tree(head.tree))
        first = seen.setdefault(key, head.unit)
        if first is not head.unit:
            work.find(words.same_variants(first, head.unit, head.unit.lock), head.unit.name)


def check_histories(work: Work) -> None:
    """Step 5: migrations are an unbroken chain, and each does what it says."""
    for unit in work.units:
        history = read_history(work.files, unit)
        work.histories[unit.name] = history
        for problem in history.problems:
            work.find(words.rewritten(problem), unit.name)


def check_base(work: Work) -> None:
    """Step 5 against another commit: what was committed there is still here, unchanged."""
    if work.base is None:
        return
    for unit in _units_at(work, work.base):
        try:
            _check_migrations(work, work.base, unit)
            _check_releases(work, work.base, unit)
        except CkptDoctorError as error:
            work.unreadable(error)


def _units_at(work: Work, base: GitTree) -> tuple[Unit, ...]:
    try:
        return units_of(parse_settings(base.read("pyproject.toml") or "", f"pyproject.toml at {base.short}"))
    except SettingsError as error:
        work.unreadable(error)
        return work.project.units


def _check_migrations(work: Work, base: GitTree, unit: Unit) -> None:
    for name in base.names(unit.migrations):
        path = f"{unit.migrations}/{name}"
        if name == HEAD_FILE or not name.endswith(".toml"):
            continue
        now, before = work.files.read(path), base.read(path)
        if now is not None and text_digest(now) == text_digest(before or ""):
            continue
        work.find(words.rewritten(words.edited(path, base.ref, gone=now is None)), unit.name)


def _check_releases(work: Work, base: GitTree, unit: Unit) -> None:
    ours = next((u for u in work.project.units if u.name == unit.name), None)
    for before in read_releases(base, unit):
        text = work.files.read(before.file)
        supported = ours is not None and (
            ours.model.releases is None or before.version in ours.model.releases
        )
        if text is None or not supported:
            what = "is not supported any more"
        elif read_tree(text, before.file).digest != before.tree.digest:
            what = "was published with another tree; a published checkpoint does not change"
        else:
            continue
        place = before.file if text is not None else "pyproject.toml"
        work.find(words.dropped(unit, before.version, base.ref, what, place), unit.name, before.version)


def check_files(work: Work) -> None:
    """Step 6: checkpoints in the repository load strictly into HEAD's models."""
    trees = {h.unit: h.tree for h in work.heads if h.tree is not None}
    found = check_artifacts(work.project, trees)
    work.artifacts = found.files
    work.problems += found.problems
    for name, diagnostic in found.findings:
        work.find(diagnostic, name)


def check_accepts(work: Work) -> None:
    """Accepted findings that are past their date, or are not there any more."""
    complete = work.whole and not work.problems
    work.findings += [Finding(d) for d in work.accepts.leftovers(complete=complete)]


STEPS: tuple[Callable[[Work], None], ...] = (
    check_locks,
    check_variants,
    check_histories,
    check_base,
    check_releases,
    check_files,
    check_accepts,
)
