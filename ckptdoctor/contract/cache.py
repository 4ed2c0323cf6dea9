"""What was built last, beside what that build has read; so an unchanged model is not built again.

One JSON file a unit in ``.ckptdoctor_cache`` at the project's root, which ignores itself in git. It is never
trusted beyond what can be measured again: see `ckptdoctor.targets.inputs`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ckptdoctor import __version__
from ckptdoctor.contract.units import Project, Unit
from ckptdoctor.errors import ApplyError
from ckptdoctor.targets.inputs import Inputs
from ckptdoctor.targets.treefile import read_tree, write_tree
from ckptdoctor.trees import ParamTree
from ckptdoctor.writers.text import text_file

FOLDER = ".ckptdoctor_cache"


def cached_tree(project: Project, unit: Unit) -> ParamTree | None:
    """The tree of the last build if nothing that it read has changed since, else None."""
    try:
        data = json.loads((project.root / FOLDER / f"{unit.name}.json").read_text(encoding="utf-8"))
        if data["request"] != _request(project, unit) or Inputs.from_dict(data["inputs"]).changed():
            return None
        tree = read_tree(data["tree"], f"{FOLDER}/{unit.name}.json")
        return replace(tree, renamed=data["renamed"])
    except Exception:
        # A cache that cannot be read is no cache; the model is built.
        return None


def keep_tree(project: Project, unit: Unit, tree: ParamTree, inputs: Inputs | None) -> None:
    """Remember a build, when everything that it depends on is known."""
    if inputs is None or inputs.unsure:
        return
    data = {
        "request": _request(project, unit),
        "inputs": inputs.to_dict(),
        "tree": write_tree(tree),
        "renamed": dict(tree.renamed),
    }
    with suppress(OSError, ApplyError):  # a folder that cannot be written only costs time
        folder = project.root / FOLDER
        if not folder.is_dir():
            folder.mkdir()
            (folder / ".gitignore").write_text("*\n")
        with text_file(folder / f"{unit.name}.json") as stream:
            stream.write(json.dumps(data))


def _request(project: Project, unit: Unit) -> dict[str, Any]:
    kwargs = json.loads(json.dumps(dict(unit.kwargs)))
    return {"version": __version__, "root": str(project.root), "entry": unit.model.entry, "kwargs": kwargs}
