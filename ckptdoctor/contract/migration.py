"""A migration: a plan that is committed, with the trees on both its sides and its place in the chain.

    [migration]
    number = 2
    model = "resnet"
    after = "sha256:..."     # digest of 0001-*.toml; an edited or missing one is noticed

    [trees]
    from = [...]             # the lines of a .tree file: what the checkpoint holds
    to = [...]               # what comes out

The file is a plan in every other respect, so ``ckptdoctor apply 0002-stages.toml OLD -o NEW`` runs it.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckptdoctor.errors import CkptDoctorError, PlanError
from ckptdoctor.keys import printable
from ckptdoctor.plan import Expansion, Plan, expand, from_toml, to_toml
from ckptdoctor.plan.toml import quote, toml_line
from ckptdoctor.settings.lines import find_line
from ckptdoctor.targets.treefile import read_tree, write_tree
from ckptdoctor.trees import ParamTree

HEAD_FILE = "head"
FILE_NAME = re.compile(r"(?P<number>[0-9]{4,})-(?P<slug>[a-z0-9]+(?:-[a-z0-9]+)*)\.toml")


class _Migration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    number: Annotated[int, Field(ge=1, strict=True)]
    model: Annotated[str, Field(min_length=1)]
    after: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""


class _Trees(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    from_: Annotated[tuple[str, ...], Field(alias="from", min_length=1)]
    to: Annotated[tuple[str, ...], Field(min_length=1)]


class _Tables(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    migration: _Migration
    trees: _Trees


@dataclass(frozen=True)
class Migration:
    """One committed step of a model's history: ``plan`` takes ``source`` to ``target``.

    ``digest`` is that of the file's text, by which the next migration names this one.
    """

    name: str  # of the file
    number: int
    model: str
    after: str
    plan: Plan
    source: ParamTree
    target: ParamTree
    digest: str = ""

    @cached_property
    def expansion(self) -> Expansion:
        """The plan key by key, checked against both trees. Raises :class:`PlanError`."""
        return expand(self.plan, self.source, self.target)


def text_digest(text: str) -> str:
    """``sha256:...`` of a text, however git checked out its line ends."""
    return "sha256:" + hashlib.sha256(text.replace("\r\n", "\n").encode()).hexdigest()


def write_migration(migration: Migration) -> str:
    """The file's text; ``read_migration`` gives back the same."""
    parts = [to_toml(migration.plan), "\n[migration]\n"]
    parts.append(toml_line("number", migration.number))
    parts.append(toml_line("model", migration.model))
    if migration.after:
        parts.append(toml_line("after", migration.after, "digest of the migration before"))
    parts.append("\n[trees]\n")
    for name, tree in (("from", migration.source), ("to", migration.target)):
        # One line of the tree a line, however short it is: so a review and a merge can read it.
        lines = write_tree(tree).splitlines()
        parts.append(f"{name} = [\n" + "".join(f"  {quote(line)},\n" for line in lines) + "]\n")
    return "".join(parts)


def read_migration(text: str, name: str) -> Migration:
    """Read a migration file. Raises :class:`PlanError` that names file and line."""
    shown = printable(name)
    try:
        plan = from_toml(text)
    except PlanError as error:
        raise PlanError(f"{shown}: {error}") from None
    data: Any = tomllib.loads(text)
    try:
        tables = _Tables.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        line = find_line(text, problem["loc"])
        raise PlanError(f"{shown}:{line}: `{printable(where)}`: {printable(problem['msg'])}") from None
    try:
        source = read_tree("\n".join(tables.trees.from_), f"{name} [trees] from")
        target = read_tree("\n".join(tables.trees.to), f"{name} [trees] to")
    except CkptDoctorError as error:
        raise PlanError(str(error)) from None
    head = tables.migration
    file = Path(name).name
    return Migration(file, head.number, head.model, head.after, plan, source, target, text_digest(text))


def head_text(migration: Migration) -> str:
    """The one line of ``head``: the newest migration. Two branches that each add one change this line."""
    return f"{migration.name} {migration.digest}\n"
