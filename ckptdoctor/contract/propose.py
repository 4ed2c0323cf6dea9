"""New migrations: their numbers, names and texts, and how they get to the disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from ckptdoctor.contract.history import History
from ckptdoctor.contract.migration import HEAD_FILE, Migration, head_text, text_digest, write_migration
from ckptdoctor.contract.report import Proposal
from ckptdoctor.contract.units import Unit
from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable
from ckptdoctor.plan import Plan
from ckptdoctor.trees import ParamTree
from ckptdoctor.writers.text import text_file

_WORD = re.compile(r"[a-z]+[0-9]*")


def propose(
    unit: Unit, history: History, wanted: Sequence[tuple[Plan, ParamTree, ParamTree]]
) -> list[tuple[Proposal, Migration]]:
    """One migration for each (plan, from, to), chained behind those that are committed."""
    last = history.migrations[-1] if history.migrations else None
    number, after = (last.number, last.digest) if last is not None else (0, "")
    made = []
    for plan, source, target in wanted:
        number += 1
        name = f"{number:04d}-{slug(plan)}.toml"
        migration = Migration(name, number, unit.name, after, plan, source, target)
        text = write_migration(migration)
        after = text_digest(text)
        made.append(
            (Proposal(unit.name, f"{unit.migrations}/{name}", text), replace(migration, digest=after))
        )
    return made


def slug(plan: Plan) -> str:
    """A few plain words of what the plan's largest step makes: ``stages``, ``backbone-stem``."""
    steps = sorted(plan.step, key=lambda s: -s.keys)
    for step in steps:
        to = getattr(step, "to", ()) or ()
        texts = [to] if isinstance(to, str) else list(to)
        words = [
            w
            for text in texts[:1]
            for w in _WORD.findall(text.lower())
            if w not in ("i", "j", "weight", "bias")
        ]
        if words:
            kind = [] if step.op in ("rename", "transform") else [step.op]
            return "-".join([*words[:2], *kind])[:40].strip("-")
    return steps[0].op.replace("_", "-") if steps else "same"


def write_proposals(root: Path, unit: Unit, made: Sequence[Migration]) -> list[str]:
    """Write the migrations and ``head``, all or none. Returns the paths of the migrations, from the root.

    They take their places in their order, ``head`` last: what a killed process leaves is a chain, too.
    """
    if not made:
        return []
    paths = [f"{unit.migrations}/{migration.name}" for migration in made]
    texts = {root / p: write_migration(m) for p, m in zip(paths, made, strict=True)}
    for path in texts:
        _make_folder(path)
        if path.exists():
            raise FileExistsError(17, "is there already; migrations are only ever added", str(path))
    head, text = root / unit.migrations / HEAD_FILE, head_text(made[-1])
    with ExitStack() as stack:
        stack.push(lambda kind, error, trace: _take_back(texts, head, text) if error is not None else None)
        for path, content in ((head, text), *reversed(texts.items())):  # left in the opposite order
            stream = stack.enter_context(text_file(path))
            stream.write(content)
            stream.flush()
    return paths


def _take_back(texts: Mapping[Path, str], head: Path, head_text: str) -> None:
    """Remove the migrations that are in place already, when ``head`` could not follow."""
    with suppress(OSError):
        if head.read_text(encoding="utf-8") == head_text:
            return
    for path, text in texts.items():
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == text:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    _make_folder(path)
    with text_file(path) as stream:
        stream.write(text)


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = printable(error.strerror or str(error))
        raise ApplyError(f"`{printable(str(path))}`: its folder could not be made: {reason}") from error
