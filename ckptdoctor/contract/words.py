"""How the contract's findings are worded; the codes are explained in `ckptdoctor.rules.contract`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from ckptdoctor.contract.history import Problem, Release
from ckptdoctor.contract.judge import Judgement
from ckptdoctor.contract.units import Unit
from ckptdoctor.diagnostics import Diagnostic, Help, Line
from ckptdoctor.keys import fold, natural_key, printable
from ckptdoctor.plan import Plan
from ckptdoctor.plan.model import Rename, StripPrefix, StripSegment, Transform
from ckptdoctor.rules import find_rule
from ckptdoctor.rules.words import count, key_lines
from ckptdoctor.targets.treefile import TreeFileError, tree_lines, write_tree
from ckptdoctor.trees import ParamTree

SHOWN = 6  # lines of the engine's evidence that are repeated for one of its findings


class Places:
    """``file:line`` of keys in the committed trees."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, int]] = {}

    def add(self, file: str, text: str) -> None:
        """Make a ``.tree`` file known."""
        try:
            self._lines[file] = tree_lines(text, file)
        except TreeFileError:
            self._lines[file] = {}

    def of(self, keys: Iterable[str], *files: str) -> str:
        """The first place of any of the keys, looked for in these files in turn; else the first file."""
        ordered = sorted(keys, key=natural_key)
        for file in files:
            lines = self._lines.get(file, {})
            place = next((f"{file}:{lines[k]}" for k in ordered if k in lines), "")
            if place:
                return place
        return files[0]


def stale_lock(unit: Unit, old: str | None, new: ParamTree) -> Diagnostic:
    """CKD701."""
    before = [] if old is None else old.replace("\r\n", "\n").splitlines()
    after = write_tree(new).splitlines()
    gone, come = set(before) - set(after), set(after) - set(before)
    evidence = [Line(_squeezed(w), "-") for w in before if w in gone]
    evidence += [Line(_squeezed(w), "+") for w in after if w in come]
    first = next((n for n, line in enumerate(before, 1) if line in gone), 1)
    missing = f"the model `{unit.name}` has no committed tree yet"
    title = missing if old is None else f"the model `{unit.name}` is not what {unit.lock} says"
    return find_rule("CKD701").finding(
        title,
        place=(f"{unit.lock}:{first}" if old is not None else unit.lock, unit.model.entry),
        evidence=evidence if old is not None else (),
        helps=[Help(command("lock", unit), "write it again, then read the difference and commit it")],
    )


def unreadable_lock(unit: Unit, error: TreeFileError) -> Diagnostic:
    """CKD701, for a lock that is no tree."""
    words = str(error).removeprefix(f"{unit.lock}:")
    line, _, what = words.partition(": ")
    return find_rule("CKD701").finding(
        f"{unit.lock} cannot be read: {what or words}",
        place=(f"{unit.lock}:{line}" if line.isdigit() else unit.lock, ""),
        helps=[Help(command("lock", unit), "write it again")],
    )


def same_variants(first: Unit, second: Unit, place: str) -> Diagnostic:
    """CKD710."""
    return find_rule("CKD710").finding(
        f"the variants `{first.name}` and `{second.name}` have the same tree",
        place=(place, ""),
        why="their arguments make no difference to keys, shapes, dtypes and ties",
        notes=["remove one of them, or correct its arguments"],
    )


def rewritten(problem: Problem) -> Diagnostic:
    """CKD704."""
    return find_rule("CKD704").finding(
        problem.title,
        place=(problem.file, ""),
        why=problem.why,
        helps=[Help(c, words) for c, words in problem.helps],
    )


def dropped(unit: Unit, version: str, ref: str, what: str, place: str) -> Diagnostic:
    """CKD705."""
    return find_rule("CKD705").finding(
        f"release {version} of `{unit.name}` {what}",
        place=(place, f"supported at {printable(ref)}"),
        helps=[
            Help(f"git checkout {shlex.quote(printable(ref))} -- {unit.release(version)}", "bring it back"),
            _accept_help("dropped-release", version),
        ],
    )


def missing_migration(unit: Unit, release: Release, found: Judgement, path: str, place: str) -> Diagnostic:
    """CKD702."""
    assert found.plan is not None  # repairable
    causes = [d for d in found.findings if d.fix is not None]
    evidence = [line for d in causes for line in d.evidence[:SHOWN]]
    evidence = evidence or [Line(text) for text in plan_words(found.plan)]
    keys = tuple(k for d in causes for k in d.keys)
    return find_rule("CKD702").finding(
        f"checkpoints of `{unit.name}` {release.version} need a migration that is not committed",
        place=(place, f"{release.file}"),
        evidence=evidence,
        why=next((d.why for d in causes if d.why), ""),
        fix=(f"commit {path}: {summary(found.plan)}", "safe"),
        helps=[Help(command("migrate", unit, "--write"), "writes it")],
        keys=keys,
    )


def breaking(unit: Unit, release: Release, found: Judgement, place: str, code: str = "CKD703") -> Diagnostic:
    """CKD703, or CKD711 for HEAD's checkpoints in a released model."""
    rule = find_rule(code)
    first = found.findings[0].title if found.findings else "extra state differs"
    if code == "CKD703":
        title = f"checkpoints of `{unit.name}` {release.version} do not load any more: {first}"
    else:
        title = f"checkpoints of this `{unit.name}` do not load into release {release.version}: {first}"
    evidence: list[Line] = []
    for d in found.findings:
        evidence += [Line(d.title)] if len(found.findings) > 1 else []
        evidence += d.evidence[:SHOWN]
    evidence = evidence or list(key_lines(found.open))
    return rule.finding(
        title,
        place=(place, release.file),
        evidence=evidence,
        notes=[n for d in found.findings for n in d.notes],
        helps=[
            *(_answers(unit, found) if code == "CKD703" else ()),
            _accept_help(rule.name, release.version),
        ],
        keys=found.open,
    )


def _answers(unit: Unit, found: Judgement) -> list[Help]:
    helps = [h for d in found.findings for h in d.helps if h.command.startswith("--")]
    flags = " ".join(dict.fromkeys(h.command for h in helps))
    return (
        [Help(f"{command('migrate', unit, '--write')} {flags}", "record this in a migration")]
        if flags
        else []
    )


def _accept_help(name: str, release: str) -> Help:
    words = f'rule = "{name}", release = "{printable(release)}", reason, owner and until, if it is meant'
    return Help("[[tool.ckptdoctor.accept]]", words)


def tolerated(unit: Unit, release: Release, found: Judgement, place: str) -> Diagnostic:
    """CKD707."""
    return find_rule("CKD707").finding(
        f"{count(len(found.open), 'key')} of `{unit.name}` {release.version} and this model differ; "
        "every declared consumer ignores that",
        place=(place, release.file),
        evidence=key_lines(found.open),
        keys=found.open,
    )


def artifact(file: str, title: str, why: str, evidence: Sequence[Line], helps: Sequence[Help]) -> Diagnostic:
    """CKD706."""
    return find_rule("CKD706").finding(title, place=(file, ""), why=why, evidence=evidence, helps=helps)


def expired(place: str, rule: str, until: str, owner: str) -> Diagnostic:
    """CKD708."""
    return find_rule("CKD708").finding(
        f"the accepted `{printable(rule)}` was accepted until {until}; that is over",
        place=(place, ""),
        notes=[f"ask {printable(owner)}: mend it, or set a new date"],
    )


def unused(place: str, rule: str, owner: str) -> Diagnostic:
    """CKD709."""
    return find_rule("CKD709").finding(
        f"nothing fits the accepted `{printable(rule)}` any more",
        place=(place, f"of {printable(owner)}"),
        notes=["remove the entry"],
    )


def command(name: str, unit: Unit, *flags: str) -> str:
    """``ckptdoctor migrate --model resnet --write``."""
    return " ".join(["ckptdoctor", name, "--model", unit.name, *flags])


def plan_words(plan: Plan) -> list[str]:
    """One line for each step that moves something: ``layer{i}.** -> stages.{i-1}.** (4 keys)``."""
    words = []
    for step in plan.step:
        if isinstance(step, Rename):
            words.append(f"{step.from_} -> {step.to} ({count(step.keys, 'key')})")
        elif isinstance(step, StripPrefix):
            words.append(f"without `{step.prefix}` ({count(step.keys, 'key')})")
        elif isinstance(step, StripSegment):
            words.append(f"without `{step.segment}` ({count(step.keys, 'key')})")
        elif isinstance(step, Transform):
            chains = ", ".join(dict.fromkeys(step.apply))
            words.append(
                f"{', '.join(step.from_)} -> {', '.join(step.to)} by {chains} ({count(step.keys, 'key')})"
            )
        else:
            words.append(f"{step.op} ({count(step.keys, 'key')})")
    return [printable(w) for w in words]


def summary(plan: Plan) -> str:
    """The first step, and how many more there are."""
    words = plan_words(plan)
    if not words:
        return "nothing moves"
    return words[0] + (f" and {count(len(words) - 1, 'more step')}" if len(words) > 1 else "")


def key_words(keys: Sequence[str]) -> str:
    """A few keys, folded."""
    folds = fold(list(keys))
    shown = ", ".join(f"`{printable(f.text)}`" for f in folds[:2])
    return shown + (f" and {count(sum(f.count for f in folds[2:]), 'more key')}" if len(folds) > 2 else "")


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def edited(path: str, ref: str, *, gone: bool) -> Problem:
    """A migration that another commit has and this one has not, or has differently."""
    what = "was removed" if gone else "was edited"
    return Problem(
        path,
        f"{path.rpartition('/')[2]} {what}; {printable(ref)} has it",
        "checkpoints of a supported release go through it; migrations are only ever added",
        ((f"git checkout {shlex.quote(printable(ref))} -- {shlex.quote(printable(path))}", "bring it back"),),
    )
