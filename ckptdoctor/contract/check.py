"""The pre-merge check: HEAD's models against their locks, their releases and their migrations."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptdoctor.contract import words
from ckptdoctor.contract.accepts import Accepts, Finding, diagnostics
from ckptdoctor.contract.artifacts import check_artifacts
from ckptdoctor.contract.build import Head, build_heads
from ckptdoctor.contract.files import Files, GitTree, WorkingTree, open_ref
from ckptdoctor.contract.history import History, Release, read_history, read_releases
from ckptdoctor.contract.judge import Judgement, Terms, judge
from ckptdoctor.contract.migration import HEAD_FILE, Migration, text_digest
from ckptdoctor.contract.propose import propose
from ckptdoctor.contract.report import CheckReport, Direction, Proposal, Row, Verdict
from ckptdoctor.contract.units import Project, Unit, open_project, units_of
from ckptdoctor.decisions import Decision
from ckptdoctor.errors import CkptDoctorError, SettingsError
from ckptdoctor.keys import printable
from ckptdoctor.plan import Plan
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
            rows=tuple(self.rows),
            diagnostics=tuple(diagnostics([Finding(d) for d in found])),
            problems=tuple(self.problems),
            models={h.unit.name: h.how for h in self.heads if h.tree is not None},
            proposals=tuple(p for p, _ in self.made),
            artifacts=self.artifacts,
            notes=tuple(self.notes),
        )

    def find(self, diagnostic: object, unit: str = "", release: str = "") -> Finding:
        """Add a finding, less what is accepted."""
        found = Finding(diagnostic, unit, release)  # type: ignore[arg-type]
        self.accepts.apply(found)
        self.findings.append(found)
        return found

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
    text = work.base.read("pyproject.toml")
    try:
        settings = parse_settings(text or "", f"pyproject.toml at {work.base.ref}")
    except SettingsError as error:
        work.problems.append(str(error))
        return
    for unit in units_of(settings):
        _check_migrations(work, work.base, unit)
        _check_releases(work, work.base, unit)


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


def check_releases(work: Work) -> None:
    """Step 3 and 4: every supported release, through its migrations, against HEAD's model, and back."""
    for head in work.heads:
        if head.tree is None:
            continue
        try:
            releases = read_releases(work.files, head.unit)
            unreleased = _unreleased(work, head.unit, releases)
        except CkptDoctorError as error:
            work.problems.append(str(error))
            continue
        for release in (*releases, *unreleased):
            work.places.add(release.file, release.text)
        if head.unit.compatibility in ("backward", "full"):
            _backward(work, head.unit, head.tree, (*releases, *unreleased))
        if head.unit.compatibility in ("forward", "full"):
            for release in releases:
                _forward(work, head.unit, head.tree, release)
    if not work.build and not work.rows and not work.problems:
        work.problems.append("nothing was compared: the code was not built, and there is no release")


def _unreleased(work: Work, unit: Unit, releases: Sequence[Release]) -> list[Release]:
    """The model of the other commit: people train with the main branch, too."""
    if work.base is None or not work.project.settings.unreleased:
        return []
    text = work.base.read(unit.lock)
    if text is None:
        return []
    tree = read_tree(text, f"{unit.lock} at {work.base.ref}")
    if any(r.tree.digest == tree.digest for r in releases):
        return []
    return [Release(work.base.ref, unit.lock, text, tree)]


def _backward(work: Work, unit: Unit, tree: ParamTree, releases: Sequence[Release]) -> None:
    wanted: dict[str, tuple[Plan, ParamTree, ParamTree]] = {}
    waiting: list[tuple[Release, Judgement, str]] = []
    for release in releases:
        path, end, found = _through(work, unit, tree, release)
        if found.outcome == "compatible":
            verdict: Verdict = "migratable" if path else "compatible"
            _row(work, unit, release, "backward", verdict, ", then ".join(m.name for m in path))
        elif found.outcome == "tolerated":
            place = work.places.of(found.open, unit.lock, release.file)
            work.find(words.tolerated(unit, release, found, place), unit.name, release.version)
            _row(work, unit, release, "backward", "compatible", "what differs is ignored by every consumer")
        elif found.outcome == "repairable" and found.plan is not None:
            wanted.setdefault(end.digest, (found.plan, end, tree))
            waiting.append((release, found, end.digest))
        else:
            place = work.places.of(found.open, unit.lock, release.file)
            made = work.find(words.breaking(unit, release, found, place), unit.name, release.version)
            what = found.findings[0].title if found.findings else words.key_words(found.open)
            _row(work, unit, release, "backward", "accepted" if made.accepted else "breaking", what)
    made_now = propose(unit, work.histories[unit.name], list(wanted.values()))
    work.made += made_now
    paths = dict(zip(wanted, (p.path for p, _ in made_now), strict=True))
    for release, found, digest in waiting:
        assert found.plan is not None
        keys = [k for d in found.findings for k in d.keys]
        place = work.places.of(keys, unit.lock, release.file)
        work.find(
            words.missing_migration(unit, release, found, paths[digest], place), unit.name, release.version
        )
        _row(work, unit, release, "backward", "migration missing", words.summary(found.plan))


def _through(
    work: Work, unit: Unit, tree: ParamTree, release: Release
) -> tuple[Sequence[Migration], ParamTree, Judgement]:
    """Where the release's checkpoint ends, and how that fits; without a migration if it needs none."""
    file, label = release.file, unit.model.entry
    path, end = work.histories[unit.name].follow(release.tree, tree)
    if path:
        plain = work.compare(release.tree, tree, unit, file, label)
        if plain.outcome == "compatible":
            return (), release.tree, plain
    return path, end, work.compare(end, tree, unit, file, label)


def _forward(work: Work, unit: Unit, tree: ParamTree, release: Release) -> None:
    found = work.compare(tree, release.tree, unit, unit.lock, release.file)
    if found.outcome in ("compatible", "tolerated"):
        if found.outcome == "tolerated":
            place = work.places.of(found.open, release.file)
            work.find(words.tolerated(unit, release, found, place), unit.name, release.version)
        _row(work, unit, release, "forward", "compatible", "")
        return
    keys = found.open or tuple(k for d in found.findings for k in d.keys)
    place = work.places.of(keys, unit.lock, release.file)
    diagnostic = words.breaking(unit, release, replace(found, open=keys), place, "CKD711")
    made = work.find(diagnostic, unit.name, release.version)
    what = found.findings[0].title if found.findings else words.key_words(keys)
    _row(work, unit, release, "forward", "accepted" if made.accepted else "breaking", what)


def _row(work: Work, unit: Unit, release: Release, direction: Direction, verdict: Verdict, what: str) -> None:
    work.rows.append(Row(unit.name, printable(release.version), direction, verdict, what))


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
