"""A model's committed history: its migrations in a chain, and the releases that it still supports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckptdoctor.contract.files import Files
from ckptdoctor.contract.migration import FILE_NAME, HEAD_FILE, Migration, head_text, read_migration
from ckptdoctor.contract.units import Unit
from ckptdoctor.errors import CkptDoctorError, ContractError, PlanError
from ckptdoctor.keys import natural_key, printable
from ckptdoctor.targets.treefile import read_tree
from ckptdoctor.trees import ParamTree


@dataclass(frozen=True)
class Release:
    """A checkpoint that people have: its tree, as text and as data, and the file that holds it."""

    version: str
    file: str
    text: str
    tree: ParamTree


@dataclass(frozen=True)
class Problem:
    """Why a chain of migrations does not hold; ``helps`` are commands that mend it."""

    file: str
    title: str
    why: str = ""
    helps: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class History:
    """The migrations of one unit that could be read, in order, and what is wrong with the chain."""

    migrations: tuple[Migration, ...] = ()
    problems: tuple[Problem, ...] = ()

    def follow(self, tree: ParamTree, goal: ParamTree) -> tuple[tuple[Migration, ...], ParamTree]:
        """The migrations that a checkpoint of this tree goes through, and the tree at their end.

        Stops at ``goal``. Each migration is used once, so a change that was taken back makes no circle.
        """
        path: list[Migration] = []
        left = list(self.migrations)
        while tree.digest != goal.digest:
            step = next((m for m in left if m.plan.source.tree == tree.digest), None)
            if step is None:
                break
            left = left[left.index(step) + 1 :]
            path.append(step)
            tree = step.target
        return tuple(path), tree


def read_releases(files: Files, unit: Unit) -> list[Release]:
    """The supported releases, oldest first. Raises :class:`ContractError` for one that is not there."""
    there = [name.removesuffix(".tree") for name in files.names(unit.releases) if name.endswith(".tree")]
    wanted = unit.model.releases
    found = []
    for version in sorted(there, key=natural_key) if wanted is None else wanted:
        file = unit.release(version)
        text = files.read(file)
        if text is None:
            raise ContractError(
                f"{file} is not there, and the settings support release {version} of {unit.model.name}; "
                f"ckptdoctor release add {version} CKPT --model {unit.name}"
            )
        found.append(Release(version, file, text, read_tree(text, file)))
    return found


def read_lock(files: Files, unit: Unit) -> ParamTree | None:
    """The committed tree of the model, None when there is none yet."""
    text = files.read(unit.lock)
    return None if text is None else read_tree(text, unit.lock)


def read_history(files: Files, unit: Unit) -> History:
    """The unit's migrations and everything that is wrong with their chain."""
    names = [n for n in files.names(unit.migrations) if n.endswith(".toml")]
    found: list[Migration] = []
    problems: list[Problem] = []
    for name in names:
        path = f"{unit.migrations}/{name}"
        if not FILE_NAME.fullmatch(name):
            problems.append(
                Problem(path, f"{printable(name)} is no migration's name, such as 0002-stages.toml")
            )
            continue
        try:
            found.append(read_migration(files.read(path) or "", path))
        except (PlanError, CkptDoctorError) as error:
            problems.append(Problem(path, str(error)))
    found.sort(key=lambda m: (m.number, m.name))
    problems += _chain_problems(unit, found)
    if not problems:
        problems += _head_problem(files, unit, found)
    return History(tuple(found), tuple(problems))


def _chain_problems(unit: Unit, found: Sequence[Migration]) -> Iterator[Problem]:
    forks = {m.number for m in found if sum(o.number == m.number for o in found) > 1}
    for number in sorted(forks):
        yield _fork(unit, [m for m in found if m.number == number])
    before: Migration | None = None
    for migration in found:
        if migration.number not in forks:
            yield from _link_problems(unit, migration, before, forks)
        before = migration


def _fork(unit: Unit, twins: Sequence[Migration]) -> Problem:
    names = " and ".join(printable(m.name) for m in twins)
    last = f"{unit.migrations}/{twins[-1].name}"
    return Problem(
        last,
        f"{names} are both migration {twins[0].number} of `{unit.name}`",
        "two branches added a migration each; checkpoints of one would miss the other's change",
        (
            (f"git rm {last}", "the one of them that is not on the main branch yet"),
            (
                f"ckptdoctor lock && ckptdoctor migrate --model {unit.name} --write",
                "make it again, after the other",
            ),
        ),
    )


def _link_problems(
    unit: Unit, migration: Migration, before: Migration | None, forks: set[int]
) -> Iterator[Problem]:
    path = f"{unit.migrations}/{migration.name}"
    number = int(migration.name.partition("-")[0])
    due = before.number + 1 if before is not None else 1
    if number != migration.number:
        yield Problem(path, f"{migration.name} says that it is number {migration.number}")
    elif migration.number != due:
        yield Problem(path, f"migration {due} of `{unit.name}` is missing before {migration.name}", _RESTORE)
    elif before is not None and before.number not in forks and migration.after != before.digest:
        yield Problem(
            f"{unit.migrations}/{before.name}",
            f"{before.name} was edited after {migration.name} was made",
            _RESTORE,
            ((f"git checkout main -- {unit.migrations}/{before.name}", "bring back what was committed"),),
        )
    elif before is None and migration.after:
        yield Problem(path, f"what came before {migration.name} is missing", _RESTORE)
    if migration.model != unit.name:
        yield Problem(
            path, f"{migration.name} is a migration of `{printable(migration.model)}`, not of {unit.name}"
        )
    try:
        _ = migration.expansion
    except PlanError as error:
        yield Problem(path, f"{migration.name} does not hold: {error}")


_RESTORE = "checkpoints of a supported release go through it; migrations are only ever added"


def _head_problem(files: Files, unit: Unit, found: Sequence[Migration]) -> Iterator[Problem]:
    path = f"{unit.migrations}/{HEAD_FILE}"
    text = files.read(path)
    due = head_text(found[-1]) if found else None
    if (text or "").strip() == (due or "").strip():
        return
    newest = found[-1].name if found else "no migration at all"
    if text is not None and any(mark in text for mark in ("<<<<<<<", ">>>>>>>")):
        title = f"{path} has an unresolved merge conflict: two branches added a migration each"
    elif text is None:
        title = f"{path} is missing; the newest migration is {newest}"
    else:
        title = f"{path} names another newest migration than {newest}: one was edited or removed"
    command = f"ckptdoctor migrate --model {unit.name} --write"
    yield Problem(path, title, _RESTORE, ((command, "write it again, once the right migrations are there"),))
