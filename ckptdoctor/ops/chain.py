"""Chains: ops in a row, and how their texts are read.

Grammar::

    chain = op ("|" op)*
    op    = name | name "(" arguments ")" | each ":" op
    each  = "each" | "each[" position ("," position)* "]"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import OPS, Effect, Op, Shape, Unary, show
from ckptdoctor.ops.each import Each
from ckptdoctor.ops.layout import Copy

if TYPE_CHECKING:
    from torch import Tensor

MAX_OPS = 64  # per chain; real ones have at most a handful
MAX_TEXT = 100_000  # characters; a blockperm of many blocks is long, more than this is hostile

_EACH = re.compile(r"each(?:\[([0-9]{1,6}(?:,[0-9]{1,6})*)\])?:")
_OP = re.compile(r"(?P<name>[a-z][a-z0-9_]*)(?:\((?P<args>[^()|]*)\))?")


@dataclass(frozen=True)
class Chain:
    """Ops applied in order to the list of sources, ending in one tensor.

    ``str(chain)`` is the text that :func:`parse_chain` reads.

    >>> chain = parse_chain(["transpose(0,1)", "chunk(0,1,3)"])
    >>> chain.out_shape([(48, 144)])
    (48, 48)
    """

    ops: tuple[Op, ...] = ()

    def __str__(self) -> str:
        return "|".join(self.texts) or "copy"

    @property
    def texts(self) -> tuple[str, ...]:
        """One text per op; empty for a plain copy."""
        return tuple(str(op) for op in self.ops)

    @property
    def effect(self) -> Effect:
        """The worst of its ops: ``lossy``, else ``computed``, else ``exact``."""
        effects = {op.effect for op in self.ops}
        return "lossy" if "lossy" in effects else "computed" if "computed" in effects else "exact"

    @property
    def partial(self) -> bool:
        """Whether only a part of a source is taken; see :func:`ckptdoctor.ops.partition`."""
        return any(op.partial for op in self.ops)

    @property
    def lossless(self) -> bool:
        """Whether every value of every source is in the result, unchanged: the chain alone can be undone."""
        return self.effect == "exact" and not self.partial

    def out_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Shape of the result. Raises :class:`PlanError` with op and shapes if the chain cannot run."""
        return self.states(shapes)[-1][0]

    def out_dtype(self, dtypes: Sequence[str]) -> str:
        """Dtype of the result, e.g. ``"float32"``, from those of the sources."""
        state = tuple(dtypes)
        for op in self.ops:
            state = op.out_dtypes(state)
        return state[0]

    def states(self, shapes: Sequence[Shape]) -> list[tuple[Shape, ...]]:
        """Shapes before the first op and after each."""
        states = [tuple(tuple(s) for s in shapes)]
        try:
            for op in self.ops:
                states.append(op.out_shapes(states[-1]))
        except PlanError as error:
            raise PlanError(f"{error} (in `{self}` on {', '.join(map(show, shapes)) or 'nothing'})") from None
        if len(states[-1]) != 1:
            raise PlanError(
                f"`{self}` on {len(shapes)} sources leaves {len(states[-1])} tensors; "
                "end it with concat(dim) or stack(dim)"
            )
        return states

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """The result; may be a view of a source. Raises :class:`PlanError` when shapes do not fit."""
        expected = self.out_shape([tuple(t.shape) for t in tensors])
        state = list(tensors)
        for op in self.ops:
            state = op.run_all(state)
        (result,) = state
        if tuple(result.shape) != expected:
            raise PlanError(f"`{self}` gave {show(tuple(result.shape))} where {show(expected)} was due")
        return result

    def inverse(self, shapes: Sequence[Shape]) -> tuple[Chain, ...]:
        """For each source (of these shapes) the chain that makes it again from the result.

        Raises :class:`PlanError` when one op cannot be undone.
        """
        states = self.states(shapes)
        undo: list[tuple[Op, ...]] = [()]
        for op, before in zip(reversed(self.ops), reversed(states[:-1]), strict=True):
            steps = op.undo_all(before)
            after = undo if len(undo) == len(steps) else undo * len(steps)
            undo = [done + more for done, more in zip(after, steps, strict=True)]
        return tuple(Chain(tuple(op for op in ops if not isinstance(op, Copy))) for ops in undo)


def parse_chain(ops: Sequence[str] | str) -> Chain:
    """Read op texts; each may itself be a chain ``a|b``; nothing at all is a plain copy.

    Raises :class:`PlanError` with the text and the position of what cannot be read.
    """
    return _parse("|".join([ops] if isinstance(ops, str) else list(ops)))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Chain:
    if len(text) > MAX_TEXT:
        raise PlanError(f"an op text of {len(text)} characters is too long (at most {MAX_TEXT})")
    if not text.strip():
        return Chain()
    parts = text.split("|")
    if len(parts) > MAX_OPS:
        raise PlanError(f"a chain of {len(parts)} ops is too long (at most {MAX_OPS}): {text[:60]!r} ...")
    found = []
    position = 0
    for part in parts:
        found.append(_parse_op(part.strip(), position))
        position += len(part) + 1
    chain = tuple(op for op in found if not isinstance(op, Copy))
    return Chain(chain)


def _parse_op(text: str, position: int) -> Op:
    where = f"in op text at position {position}: {text[:60]!r}"
    each = _EACH.match(text)
    if each is not None:
        inner = _parse_op(text[each.end() :].strip(), position + each.end())
        if not isinstance(inner, Unary):
            raise PlanError(f"`each:` applies an op of one tensor to every source, {where}")
        return Each(inner, tuple(map(int, each[1].split(","))) if each[1] else ())
    match = _OP.fullmatch(text)
    if match is None:
        raise PlanError(f"expected name(arguments), {where}")
    cls = OPS.get(match["name"])
    if cls is None:
        raise PlanError(f"unknown op, {where}; known are each, {', '.join(sorted(OPS))}")
    try:
        return cls.parse(match["args"] or "")
    except PlanError as error:
        raise PlanError(f"{error} ({where})") from None
