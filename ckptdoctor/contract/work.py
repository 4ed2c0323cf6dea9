"""One run of the check: what is known so far, and what was found."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptdoctor.contract import words
from ckptdoctor.contract.accepts import Accepts, Finding, diagnostics
from ckptdoctor.contract.build import Head, build_heads
from ckptdoctor.contract.files import Files, GitTree, WorkingTree, open_ref
from ckptdoctor.contract.history import History
from ckptdoctor.contract.judge import Judgement, Terms, judge
from ckptdoctor.contract.migration import Migration
from ckptdoctor.contract.report import CheckReport, Proposal, Row
from ckptdoctor.contract.units import Project, Unit, open_project
from ckptdoctor.decisions import Decision
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.keys import natural_key
from ckptdoctor.keys.names import NaturalKey
from ckptdoctor.targets.treefile import read_tree
from ckptdoctor.trees import ParamTree


@dataclass
class Work:
    """One run: what is known so far, and what was found."""

    project: Project
    units: tuple[Unit, ...]
    heads: Sequence[Head]
    files: Files
    accepts: Accepts
    base: GitTree | None = None
    build: bool = True
    whole: bool = True  # every unit of the project is looked at
    decisions: tuple[Decision, ...] = ()
    histories: dict[str, History] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    made: list[tuple[Proposal, Migration]] = field(default_factory=list)
    places: words.Places = field(default_factory=words.Places)
    artifacts: int = 0
    notes: list[str] = field(default_factory=list)
    judged: dict[tuple[str, ...], Judgement] = field(default_factory=dict)

    def report(self) -> CheckReport:
        """The result."""
        found = [f.diagnostic for f in self.findings]
        return CheckReport(
            rows=tuple(sorted(self.rows, key=self._order)),
            diagnostics=tuple(diagnostics([Finding(d) for d in found])),
            problems=tuple(self.problems),
            models={h.unit.name: h.how for h in self.heads if h.tree is not None},
            proposals=tuple(p for p, _ in self.made),
            artifacts=self.artifacts,
            notes=tuple(self.notes),
        )

    def _order(self, row: Row) -> tuple[int, str, NaturalKey]:
        names = [h.unit.name for h in self.heads]
        return names.index(row.unit), row.direction, natural_key(row.release)

    def find(self, diagnostic: Diagnostic, unit: str = "", release: str = "") -> Finding:
        """Add a finding, less what is accepted."""
        found = Finding(diagnostic, unit, release)
        self.accepts.apply(found)
        self.findings.append(found)
        return found

    def unreadable(self, error: CkptDoctorError) -> None:
        """Note what of the other commit cannot be read; this one could not mend it."""
        self.notes.append(f"not compared with: {error}")

    def terms(self, unit: Unit) -> Terms:
        """What has to hold for this unit."""
        return Terms(unit.level, self.project.settings.consumers)

    def compare(self, source: ParamTree, target: ParamTree, unit: Unit, file: str, label: str) -> Judgement:
        """`judge`, once for each pair of trees."""
        key = (unit.name, source.digest, target.digest, *source.extra, "|", *target.extra)
        if key not in self.judged:
            self.judged[key] = judge(
                source, target, self.terms(unit), file=file, label=label, decisions=self.decisions
            )
        return self.judged[key]


def open_work(
    folder: Path,
    *,
    against: str | None = None,
    build: bool = True,
    model: str | None = None,
    today: datetime.date | None = None,
    given: Sequence[Head] = (),
    decisions: Sequence[Decision] = (),
) -> Work:
    """Settings, trees of HEAD, and the commit to compare with. Raises when nothing can be checked."""
    project = open_project(folder)
    units = project.choose(model)
    files = WorkingTree(project.root)
    accepts = Accepts(project, today or datetime.datetime.now(datetime.UTC).date())
    base = open_ref(project.root, against) if against is not None else None
    if given:
        heads: Sequence[Head] = given
        units = tuple(h.unit for h in given)
    elif build:
        heads = build_heads(project, units)
    else:
        heads = [_locked(files, unit) for unit in units]
    whole = units == project.units
    heads = [_declared(head, project) for head in heads]
    return Work(project, units, heads, files, accepts, base, build, whole, tuple(decisions))


def _locked(files: Files, unit: Unit) -> Head:
    try:
        text = files.read(unit.lock)
        if text is None:
            return Head(
                unit, None, problem=f"{unit.name}: {unit.lock} is not there; {words.command('lock', unit)}"
            )
        return Head(unit, read_tree(text, unit.lock), "lock")
    except CkptDoctorError as error:
        return Head(unit, None, problem=str(error))


def _declared(head: Head, project: Project) -> Head:
    """With the old names that the settings declare; those of the model itself go before them."""
    if head.tree is None:
        return head
    renamed = {**project.settings.renamed_from, **head.tree.renamed}
    return replace(head, tree=replace(head.tree, renamed=renamed))
