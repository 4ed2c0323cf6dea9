"""Published checkpoints against HEAD's model: every supported release, through its migrations, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ckptdoctor.contract import words
from ckptdoctor.contract.history import Release, read_releases
from ckptdoctor.contract.judge import Judgement
from ckptdoctor.contract.migration import Migration, meaning
from ckptdoctor.contract.propose import propose
from ckptdoctor.contract.report import Direction, Row, Verdict
from ckptdoctor.contract.units import Unit
from ckptdoctor.contract.work import Work
from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.keys import printable
from ckptdoctor.plan import Plan
from ckptdoctor.targets.treefile import read_tree
from ckptdoctor.trees import ParamTree


def check_releases(work: Work) -> None:
    """Step 3 and 4: every supported release, through its migrations, against HEAD's model, and back."""
    for head in work.heads:
        if head.tree is None:
            continue
        try:
            releases = read_releases(work.files, head.unit)
        except CkptDoctorError as error:
            work.problems.append(str(error))
            continue
        unreleased = _unreleased(work, head.unit, releases)
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
    try:
        text = work.base.read(unit.lock)
        tree = read_tree(text, f"{unit.lock} at {work.base.short}") if text is not None else None
    except CkptDoctorError as error:
        work.unreadable(error)
        return []
    if text is None or tree is None:
        return []
    if any(r.tree.digest == tree.digest for r in releases):
        return []
    return [Release(printable(work.base.short), unit.lock, text, tree)]


def _backward(work: Work, unit: Unit, tree: ParamTree, releases: Sequence[Release]) -> None:
    wanted: dict[str, tuple[Plan, ParamTree, ParamTree]] = {}
    waiting: dict[str, list[Release]] = {}
    missing: dict[str, Judgement] = {}
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
            missing[end.digest] = found
            waiting.setdefault(end.digest, []).append(release)
        else:
            place = work.places.of(found.open, unit.lock, release.file)
            made = work.find(words.breaking(unit, release, found, place), unit.name, release.version)
            what = found.findings[0].title if found.findings else words.key_words(found.open)
            _row(work, unit, release, "backward", "accepted" if made.accepted else "breaking", what)
    made_now = propose(unit, work.histories[unit.name], list(wanted.values()))
    work.made += made_now
    paths = dict(zip(wanted, (p.path for p, _ in made_now), strict=True))
    for digest, waits in waiting.items():
        _missing(work, unit, waits, missing[digest], paths[digest])


def _missing(work: Work, unit: Unit, releases: Sequence[Release], found: Judgement, path: str) -> None:
    """One finding for all releases that the same migration serves."""
    assert found.plan is not None  # repairable
    keys = [k for d in found.findings for k in d.keys]
    place = work.places.of(keys, unit.lock, releases[0].file)
    work.find(words.missing_migration(unit, releases, found, path, place), unit.name)
    for release in releases:
        _row(work, unit, release, "backward", "migration missing", words.summary(found.plan))


def _through(
    work: Work, unit: Unit, tree: ParamTree, release: Release
) -> tuple[Sequence[Migration], ParamTree, Judgement]:
    """Where the release's checkpoint ends, and how that fits; without a migration if it needs none."""
    file, label = release.file, unit.model.entry
    path, end = work.histories[unit.name].follow(release.tree)
    found = work.compare(end, tree, unit, file, label)
    if path and found.outcome == "compatible" and not meaning(path):
        return (), release.tree, found
    if path and found.outcome != "compatible":
        plain = work.compare(release.tree, tree, unit, file, label)
        if plain.outcome == "compatible":
            return (), release.tree, plain
    return path, end, found


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
