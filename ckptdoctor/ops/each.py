"""``each:<op>``: one op on every source before they are joined; ``each[0,1]:<op>``: on some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ckptdoctor.ops.base import Effect, Example, Op, Shape, Unary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Each(Op):
    """``each:transpose(0,1)``: the op on every source; written with a colon, so it is not in the registry.

    ``each[0]:rope(8;half)`` is the op on the first source only: q, k and v differ before they are
    joined.
    Source: that of the op.
    """

    op: Unary
    only: tuple[int, ...] = ()  # positions of the sources, counted from 0; empty for all

    NAME: ClassVar[str] = "each"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("each:transpose(0,1)|concat(0)", ((2, 3), (2, 4))),
        ("each:reshape(-1)|concat(0)", ((2, 3), (2, 2))),
        ("each[0,2]:transpose(0,1)|concat(0)", ((2, 3), (5, 2), (2, 1))),
    )

    def __str__(self) -> str:
        chosen = f"[{','.join(map(str, self.only))}]" if self.only else ""
        return f"each{chosen}:{self.op}"

    @property
    def effect(self) -> Effect:
        """That of the op."""
        return self.op.effect

    @property
    def partial(self) -> bool:
        """That of the op."""
        return self.op.partial

    def out_shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """One result per source."""
        if any(i >= len(shapes) for i in self.only) or len(set(self.only)) != len(self.only):
            raise self.refuse(f"must name each of its sources once, counted from 0; here are {len(shapes)}")
        return tuple(self.op.shape(s) if self._meant(i) else s for i, s in enumerate(shapes))

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """One result per source."""
        return tuple(self.op.dtype(d) if self._meant(i) else d for i, d in enumerate(dtypes))

    def run_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One result per source."""
        return [self.op.run(t) if self._meant(i) else t for i, t in enumerate(tensors)]

    def undo_all(self, shapes: Sequence[Shape]) -> tuple[tuple[Op, ...], ...]:
        """The op's own inverse, source by source."""
        return tuple((self.op.undo(s),) if self._meant(i) else () for i, s in enumerate(shapes))

    def _meant(self, position: int) -> bool:
        return not self.only or position in self.only
