"""New migrations: their numbers, names and texts, and how they get to the disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckptdoctor.contract.history import History
from ckptdoctor.contract.migration import HEAD_FILE, Migration, head_text, text_digest, write_migration
from ckptdoctor.contract.report import Proposal
from ckptdoctor.contract.units import Unit
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
    """Write the migrations, then ``head``. Returns the paths, from the root."""
    paths = []
    for migration in made:
        path = f"{unit.migrations}/{migration.name}"
        write_text(root / path, write_migration(migration), new=True)
        paths.append(path)
    if made:
        write_text(root / unit.migrations / HEAD_FILE, head_text(made[-1]))
    return paths


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Replace a file as a whole, or, with ``new``, refuse to touch one that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if new and path.exists():
        raise FileExistsError(17, "is there already; migrations are only ever added", str(path))
    with text_file(path) as stream:
        stream.write(text)
