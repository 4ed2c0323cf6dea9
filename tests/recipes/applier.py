"""A recipe file applied to a state dict, written apart from the engine: what the TOML says, word by word."""

import ast
import itertools
import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from importlib.resources import files

from torch import Tensor

from ckptdoctor.ops import parse_chain

State = dict[str, Tensor]
FOLDER = files("ckptdoctor.align") / "recipes"
NAMES = sorted(f.name.removesuffix(".toml") for f in FOLDER.iterdir() if f.name.endswith(".toml"))
# Ops that only take apart and put together; without the others a recipe is renames.
PACKING = ("concat", "chunk", "slice", "select", "stack", "copy")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


class Unknown(LookupError):
    """A value that neither a fact nor a size gives."""


def load(name: str) -> dict:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def evaluate(
    text: str, names: Mapping[str, int], facts: Mapping[str, int], dim: Callable[[str, int], int]
) -> int:
    """Integers, names, + - * // ( ), fact('name') and dim('a:key', n)."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.BinOp():
                left, right = value(node.left), value(node.right)
                if isinstance(node.op, ast.FloorDiv):
                    assert left % right == 0, f"{text}: {left} / {right} leaves a rest"
                return _OPERATORS[type(node.op)](left, right)
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name):
                return _look_up(names, name)
            case ast.Call(func=ast.Name(id="fact"), args=[ast.Constant(value=name)]):
                return _look_up(facts, name)
            case ast.Call(func=ast.Name(id="dim"), args=[ast.Constant(value=key), ast.Constant(value=n)]):
                return dim(key, n)
        raise ValueError(f"{text}: cannot be read")

    return value(ast.parse(text, mode="eval").body)


def _look_up(known: Mapping[str, int], name: str) -> int:
    if name not in known:
        raise Unknown(name)
    return known[name]


def values(recipe: dict, side: str, state: State, root: str, facts: Mapping[str, int]) -> dict[str, int]:
    """Every value that can be known; alternatives that can be evaluated must agree."""

    def dim(key: str, n: int) -> int:
        which, _, name = key.partition(":")
        full = root + name
        if which != side or full not in state:
            raise Unknown(key)
        return state[full].shape[n]

    found: dict[str, int] = {}
    table = recipe.get("values", {})
    for _ in table:
        for name, texts in table.items():
            for text in texts:
                try:
                    number = evaluate(text, found, facts, dim)
                except Unknown:
                    continue
                assert found.setdefault(name, number) == number, (
                    f"{name} = {found[name]}, but {text} = {number}"
                )
    return found


def _regex(pattern: str, root: str) -> re.Pattern[str]:
    root, pattern = ("", pattern[1:]) if pattern[0] == "^" else (root, pattern)
    numbers = itertools.count()
    text = re.sub(r"\\\{([a-z])\\\}", r"(?P<\1>0|[1-9][0-9]*)", re.escape(root + pattern))
    return re.compile(re.sub(r"\\\*", lambda _: f"(?P<star{next(numbers)}>[^.]+)", text))


def _filled(pattern: str, root: str, found: re.Match[str]) -> str:
    root, pattern = ("", pattern[1:]) if pattern[0] == "^" else (root, pattern)
    numbers = itertools.count()
    text = re.sub(r"\{([a-z])\}", lambda m: found[m[1]], pattern)
    return root + re.sub(r"\*", lambda _: found[f"star{next(numbers)}"], text)


def convert(
    name: str,
    side: str,
    state: State,
    facts: Mapping[str, int],
    roots: Mapping[str, str],
    skip: tuple[str, ...] = (),
    ops: bool = True,
) -> State:
    """The tree of the other side from one of ``side``; every tensor of ``state`` must be used exactly once.

    ``skip``: words of keys that this variant of a family does not have. Without ``ops`` only renames, joins
    and parts are left, as a tool does that goes by shapes.
    """
    recipe, other = load(name), "b" if side == "a" else "a"
    known = values(recipe, side, state, roots[side], facts)
    out: State = {}
    used: set[str] = set()
    for pair in recipe["pair"]:
        if any(word in pattern for word in skip for pattern in pair["a"] + pair["b"]):
            continue
        regex = _regex(pair[side][0], roots[side])
        for key in state:
            if not (found := regex.fullmatch(key)):
                continue
            sources = [_filled(p, roots[side], found) for p in pair[side]]
            if not all(s in state for s in sources):
                continue
            assert used.isdisjoint(sources), f"{sources} is used by two pairs"
            used.update(sources)
            for pattern, chain in zip(pair[other], pair.get(f"to_{other}", [""]), strict=True):
                target = _filled(pattern, roots[other], found)
                assert target not in out, f"{target} is made twice"
                out[target] = _run(chain, known, [state[s] for s in sources], ops)
    left = set(state) - used
    assert not left, f"{name} says nothing of {sorted(left)}"
    return out


def _run(text: str, known: Mapping[str, int], sources: list[Tensor], ops: bool) -> Tensor:
    def number(found: re.Match[str]) -> str:
        return str(evaluate(found[1], known, {}, lambda *_: 0))

    chain = re.sub(r"\{([^{}]+)\}", number, text)
    if not ops:
        kept = [op for op in chain.split("|") if op.startswith(PACKING)]
        chain = "|".join(kept)
    return parse_chain(chain).run(sources).clone()
