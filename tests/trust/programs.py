"""Plans as programs with names by strangers: parsed, they hold literals, and do nothing that is not ours."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from ckptdoctor.diagnosis import Diagnosis
from ckptdoctor.errors import PlanError


def exported(form: str) -> Callable[[Diagnosis], str]:
    def render(found: Diagnosis) -> str:
        from ckptdoctor.plan.export import export

        if found.plan is None or found.source is None or found.verdict not in ("compatible", "repairable"):
            return ""
        try:
            return export(found.plan, found.source, found.target.tree, form)
        except PlanError as error:  # a form that only renames, a name that a pattern cannot hold
            assert str(error).isprintable()
            return ""

    return render


PROGRAM = {
    "hashlib", "sys", "torch", "OrderedDict", "collections", "re",
    "STATE_DICT", "COUNTERS", "BEFORE", "AFTER", "PREFIXES", "NAMES", "USED", "MADE", "OWN", "TIED", "TIES", "DTYPES",
    "COPIES", "MODULES", "VERSION", "REVISE_KEYS", "KEY_MAPPING",
}  # fmt: skip


def inert_program(text: str, found: Diagnosis) -> None:
    """Parsed, it does nothing on import but our imports, functions and tables; names are literals, all of them."""
    if not text:
        return
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    literals: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            assert all(isinstance(t, ast.Name) and t.id in PROGRAM for t in node.targets)
            literals |= _literals(node.value)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            assert {a.name for a in node.names} <= PROGRAM
        elif isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"
        else:
            assert isinstance(node, ast.FunctionDef) or (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            ), ast.unparse(node)
    assert found.plan is not None and found.source is not None
    known = {*found.source.specs, *found.target.tree.specs, found.plan.source.state_dict}
    pieces = {k[:i] for k in known for i in range(len(k) + 1)}
    marked = "REVISE_KEYS" in text or "KEY_MAPPING" in text  # regular expressions
    digests = re.compile(r"[0-9a-f]{64}")
    assert marked or all(digests.fullmatch(w) or w in pieces for w in literals), literals - pieces


def _literals(value: ast.expr) -> set[str]:
    """The texts of a table of constants; whatever else stands in it is a dtype or a function of tensors."""
    found: set[str] = set()
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Name):
            assert node.id in ("torch", "t"), node.id
        else:
            assert not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name), ast.unparse(node)
    return found
