"""What changes the contract's files: locks, migrations, releases. `check` never does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptdoctor.contract.build import build_heads
from ckptdoctor.contract.check import check_histories, check_locks
from ckptdoctor.contract.files import WorkingTree
from ckptdoctor.contract.migration import HEAD_FILE, head_text
from ckptdoctor.contract.propose import write_proposals, write_text
from ckptdoctor.contract.releases import check_releases
from ckptdoctor.contract.report import CheckReport
from ckptdoctor.contract.units import Project, Unit, open_project
from ckptdoctor.contract.work import open_work
from ckptdoctor.decisions import Decision
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import CkptDoctorError, ContractError, TargetError
from ckptdoctor.keys import printable
from ckptdoctor.settings.model import VERSION
from ckptdoctor.targets.treefile import read_tree, write_tree
from ckptdoctor.trees import ParamTree


@dataclass(frozen=True)
class Written:
    """Paths from the project's root, and whether each was written (else it was right already)."""

    files: tuple[tuple[str, bool], ...]


def write_locks(folder: Path, model: str | None = None) -> Written:
    """Build every unit and write its lock. Raises ``TargetError`` for what cannot be built; then none is."""
    project = open_project(folder)
    heads = build_heads(project, project.choose(model))
    problems = [h.problem for h in heads if h.tree is None]
    if problems:
        raise TargetError("\n".join(problems))
    files = []
    for head in heads:
        assert head.tree is not None  # no problem
        files.append((head.unit.lock, write_lock(project, head.unit, head.tree)))
    return Written(tuple(files))


def write_lock(project: Project, unit: Unit, tree: ParamTree) -> bool:
    """Write one lock; False when it says the same already."""
    text = write_tree(tree)
    path = project.root / unit.lock
    if path.is_file() and path.read_bytes().replace(b"\r\n", b"\n") == text.encode():
        return False
    write_text(path, text)
    return True


def migrate(
    folder: Path,
    *,
    model: str | None = None,
    against: str | None = None,
    decisions: Sequence[Decision] = (),
    write: bool = False,
) -> tuple[CheckReport, list[str]]:
    """The migrations that are missing, and with ``write`` the files that were written for them.

    Raises :class:`ContractError` when a lock is stale or a chain is broken: a migration leads to the
    committed tree of the model, and follows what is committed.
    """
    work = open_work(folder, against=against, model=model, decisions=decisions)
    check_locks(work)
    if work.problems:
        raise TargetError("\n".join(work.problems))
    if work.findings:
        raise ContractError(f"{work.findings[0].diagnostic.title}; `ckptdoctor lock` first, then this again")
    check_histories(work)
    _refuse_broken([f.diagnostic for f in work.findings])
    work.findings.clear()
    check_releases(work)
    report = work.report()
    paths: list[str] = []
    if write:
        for unit in work.units:
            made = [m for p, m in work.made if p.unit == unit.name]
            paths += write_proposals(work.project.root, unit, made)
            history = work.histories[unit.name]
            if not made and history.migrations:
                write_text(work.project.root / unit.migrations / HEAD_FILE, head_text(history.migrations[-1]))
    return report, paths


def _refuse_broken(found: Sequence[Diagnostic]) -> None:
    # `head` alone is written again; everything else has to be mended by hand.
    for diagnostic in found:
        if not diagnostic.place.endswith(f"/{HEAD_FILE}"):
            place = printable(diagnostic.place)
            raise ContractError(f"{place}: {diagnostic.title}; `ckptdoctor check` says what to do")


@dataclass(frozen=True)
class Added:
    """A release that was added: the file, and how many tensors it holds."""

    file: str
    unit: str
    tensors: int
    written: bool


def add_release(folder: Path, version: str, checkpoint: str, model: str | None = None) -> Added:
    """Keep a published checkpoint's tree. Raises :class:`ContractError` when another one has that version.

    ``checkpoint`` may name a state dict inside (``file.pth#ema``). Which entries are buffers is taken from
    the model's lock, where that knows them; a file does not say.
    """
    if not VERSION.fullmatch(version):
        raise ContractError(f"`{printable(version)}` is no version; 1.0.2 or 2.0-rc1 is")
    project = open_project(folder)
    unit = _one(project, model)
    tree = _tree_of(checkpoint)
    lock = _lock_or_none(project, unit)
    specs = {
        k: replace(s, kind=lock[k].kind) if lock is not None and k in lock and not s.kind else s
        for k, s in tree.specs.items()
    }
    text = write_tree(replace(tree, specs=specs))
    file = unit.release(version)
    path = project.root / file
    if path.exists():
        known = read_tree(path.read_text(encoding="utf-8"), file)
        if known.digest != tree.digest:
            raise ContractError(
                f"{file} is there already and holds another tree; a published checkpoint does not change. "
                "Give this one another version"
            )
        return Added(file, unit.name, len(tree), False)
    write_text(path, text)
    return Added(file, unit.name, len(tree), True)


def _one(project: Project, model: str | None) -> Unit:
    units = project.choose(model)
    if len(units) != 1:
        names = ", ".join(f"--model {u.name}" for u in units)
        raise ContractError(f"the project has several models; say whose release this is: {names}")
    return units[0]


def _tree_of(checkpoint: str) -> ParamTree:
    from ckptdoctor.targets import load_target

    if checkpoint.endswith(".tree"):
        return load_target(checkpoint).tree
    from ckptdoctor.targets.checkpoint import load_reference

    return load_reference(checkpoint).tree


def _lock_or_none(project: Project, unit: Unit) -> ParamTree | None:
    try:
        text = WorkingTree(project.root).read(unit.lock)
        return None if text is None else read_tree(text, unit.lock)
    except CkptDoctorError:
        return None  # only the marks param and buffer are taken from it
