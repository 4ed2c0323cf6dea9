"""Ops on every source, before they are joined: each."""

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

    Source: that of the op.
    """

    op: Unary

    NAME: ClassVar[str] = "each"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("each:transpose(0,1)|concat(0)", ((2, 3), (2, 4))),
        ("each:reshape(-1)|concat(0)", ((2, 3), (2, 2))),
    )

    def __str__(self) -> str:
        return f"each:{self.op}"

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
        return tuple(self.op.shape(s) for s in shapes)

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """One result per source."""
        return self.op.out_dtypes(dtypes)

    def run_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One result per source."""
        return [self.op.run(t) for t in tensors]

    def undo_all(self, shapes: Sequence[Shape]) -> tuple[tuple[Op, ...], ...]:
        """The op's own inverse, source by source."""
        return tuple((self.op.undo(s),) for s in shapes)
