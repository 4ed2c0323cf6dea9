"""Small integer arithmetic in recipes: ``2*dim('a:rope.freqs',0)``, ``{heads//kv_heads}``."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

Number = float
Look = Callable[[str, tuple[object, ...]], Number]  # a call's name and arguments -> its value

_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_BRACES = re.compile(r"\{([^{}]+)\}")


class UnknownValueError(Exception):
    """A name or a call in an expression that has no value here; ``str()`` is it."""


class UnevenError(Exception):
    """A division with a remainder: the facts cannot be right."""


def evaluate(text: str, names: Mapping[str, Number], look: Look) -> Number:
    """The number that the expression stands for; a whole one is an ``int``.

    Raises :class:`UnknownValueError` or :class:`UnevenError`; ``ValueError`` for what is no expression.
    """
    value = _value(_tree(text), names, look)
    return int(value) if value == int(value) else value


def substitute(text: str, names: Mapping[str, Number], look: Look) -> str:
    """The text with every ``{expression}`` replaced by its value."""
    return _BRACES.sub(lambda m: str(evaluate(m[1], names, look)), text)


def names_in(text: str) -> set[str]:
    """Names that the braces of a text use."""
    found = [_tree(part) for part in _BRACES.findall(text)]
    called = {n.func for t in found for n in ast.walk(t) if isinstance(n, ast.Call)}
    return {n.id for t in found for n in ast.walk(t) if isinstance(n, ast.Name) and n not in called}


def calls_in(text: str, name: str) -> list[str]:
    """First arguments of the calls of ``name`` in an expression."""
    calls = (n for n in ast.walk(_tree(text)) if isinstance(n, ast.Call) and ast.unparse(n.func) == name)
    return [str(ast.literal_eval(c.args[0])) for c in calls]


def dims_in(text: str) -> list[tuple[str, int]]:
    """Arguments of the calls of ``dim`` in an expression."""
    calls = (n for n in ast.walk(_tree(text)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "dim")
    return [(str(ast.literal_eval(c.args[0])), int(ast.literal_eval(c.args[1]))) for c in calls]


@lru_cache(maxsize=4096)
def _tree(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"`{text}` is no expression") from None


def _value(node: ast.expr, names: Mapping[str, Number], look: Look) -> Number:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise UnknownValueError(node.id)
        return names[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return look(node.func.id, tuple(ast.literal_eval(a) for a in node.args))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, names, look), _value(node.right, names, look)
        if isinstance(node.op, ast.FloorDiv):
            if not right or left % right:
                raise UnevenError(f"{left:g} does not divide by {right:g}")
            return left // right
        if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"`{ast.unparse(node)}` is not allowed in a recipe")
