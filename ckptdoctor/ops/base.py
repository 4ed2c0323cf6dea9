"""What an op is: one word of the language in which plans say how a tensor is made from others.

An op knows, without values, which shape comes out (``shape``); it runs on tensors (``run``); it can say
how it is undone (``undo``), or why it cannot. Texts are written ``name(arguments)``; see ``parse.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeVar

from ckptdoctor.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

# exact: every value of the result is a source's value, unchanged, or a zero that has to be there. computed:
# all sources go in, values are arithmetic, the function of the network is kept. lossy: values are invented,
# mixed or left out for good.
Effect = Literal["exact", "computed", "lossy"]

Example = tuple[str, tuple[Shape, ...]]  # an op text and source shapes that it accepts

LIMIT = 1 << 48  # no argument is larger: a size beyond this is hostile


@dataclass(frozen=True)
class Op(ABC):
    """Base of all ops; subclass :class:`Unary` or :class:`Join` and decorate with :func:`register`.

    ``EXAMPLES`` are run by the law tests, so a new op is one class.
    """

    NAME: ClassVar[str]
    EFFECT: ClassVar[Effect] = "exact"
    PARTIAL: ClassVar[bool] = False  # takes a part of its source, so alone it is not reversible
    TAKES: ClassVar[str] = "float32"  # a dtype that the examples may have
    EXAMPLES: ClassVar[tuple[Example, ...]]

    @classmethod
    def parse(cls, args: str) -> Self:
        """Read the text between the parentheses; the default takes one integer per field."""
        return cls(*ints(args, cls.NAME, len(fields(cls))))

    def args(self) -> str:
        """The text between the parentheses, as :meth:`parse` reads it."""
        return ",".join(str(getattr(self, f.name)) for f in fields(self))

    def __str__(self) -> str:
        args = self.args()
        return f"{self.NAME}({args})" if args else self.NAME

    @property
    def effect(self) -> Effect:
        """Whether values stay exactly, are computed, or are lost."""
        return self.EFFECT

    @property
    def partial(self) -> bool:
        """Whether only a part of the source is taken."""
        return self.PARTIAL

    @abstractmethod
    def out_shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """Shapes after the op. Raises :class:`PlanError` when it cannot be applied."""

    @abstractmethod
    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """Dtypes after the op."""

    @abstractmethod
    def run_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run on tensors that ``out_shapes`` accepted."""

    @abstractmethod
    def undo_all(self, shapes: Sequence[Shape]) -> tuple[tuple[Op, ...], ...]:
        """For each source, what makes it again from the result (from its own result for ``each:``).

        Raises :class:`PlanError` when the result does not hold all values of the sources.
        """

    def refuse(self, why: str) -> PlanError:
        """A :class:`PlanError` that names this op."""
        return PlanError(f"`{self}` {why}")


class Unary(Op):
    """One tensor in, one out."""

    @abstractmethod
    def shape(self, shape: Shape) -> Shape:
        """Shape of the result."""

    @abstractmethod
    def run(self, tensor: Tensor) -> Tensor:
        """The result; may be a view."""

    def undo(self, shape: Shape) -> Op:
        """The op that makes the source of this ``shape`` again."""
        raise self.refuse("cannot be undone: the result does not hold all values of its source")

    def dtype(self, dtype: str) -> str:
        """Dtype of the result."""
        return dtype

    def out_shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """See :class:`Op`."""
        return (self.shape(self._only(shapes)),)

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """See :class:`Op`."""
        return tuple(self.dtype(d) for d in dtypes)

    def run_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Op`."""
        (tensor,) = tensors
        return [self.run(tensor)]

    def undo_all(self, shapes: Sequence[Shape]) -> tuple[tuple[Op, ...], ...]:
        """See :class:`Op`."""
        return ((self.undo(self._only(shapes)),),)

    def _only(self, shapes: Sequence[Shape]) -> Shape:
        if len(shapes) != 1:
            raise self.refuse(
                f"takes one tensor, here are {len(shapes)}; "
                f"write `each:{self}` to apply it to every source, or join them first"
            )
        return shapes[0]

    def _dim(self, dim: int, shape: Shape, extra: int = 0) -> int:
        """``dim`` counted from the front; ``extra`` = 1 where one past the end is allowed."""
        rank = len(shape) + extra
        if not -rank <= dim < rank:
            raise self.refuse(f"names dimension {dim}, the tensor is {show(shape)}")
        return dim % rank


class Join(Op):
    """All tensors in, one out."""

    @abstractmethod
    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """Shape of the result."""

    @abstractmethod
    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """The result."""

    def undo_all(self, shapes: Sequence[Shape]) -> tuple[tuple[Op, ...], ...]:
        """See :class:`Op`."""
        raise self.refuse("cannot be undone: its sources cannot be told apart in the result")

    def out_shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """See :class:`Op`."""
        if not shapes:
            raise self.refuse("has no source")
        return (self.shape(shapes),)

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """See :class:`Op`."""
        return (self.one_dtype(dtypes),)

    def run_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Op`."""
        self.one_dtype([str(t.dtype).removeprefix("torch.") for t in tensors])
        return [self.run(tensors)]

    def one_dtype(self, dtypes: Sequence[str]) -> str:
        """The dtype that holds all sources exactly; sources of unlike kinds are refused."""
        if len(set(dtypes)) == 1:
            return dtypes[0]
        wide = [d for d in ("float64", "float32") if d in dtypes] or ["float32"]
        if set(dtypes) <= {"float64", "float32", "float16", "bfloat16"}:
            return wide[0]
        raise self.refuse(f"joins sources of different dtypes: {', '.join(dtypes)}")


OPS: dict[str, type[Op]] = {}

_C = TypeVar("_C", bound=type[Op])


def register(cls: _C) -> _C:
    """Class decorator: make an op known to :func:`ckptdoctor.ops.parse_chain` under its ``NAME``."""
    if cls.NAME in OPS:
        raise ValueError(f"op {cls.NAME!r} is registered twice: {OPS[cls.NAME]} and {cls}")
    OPS[cls.NAME] = cls
    return cls


def ints(args: str, name: str, count: int | None = None) -> tuple[int, ...]:
    """Comma separated integers; ``count`` of them when given. Raises :class:`PlanError`."""
    items = args.split(",") if args.strip() else []
    if count is not None and len(items) != count:
        raise PlanError(f"`{name}` takes {count} integers, got {len(items)}")
    return tuple(integer(item, name) for item in items)


def integer(item: str, name: str) -> int:
    """One decimal integer of sane size. Raises :class:`PlanError`."""
    text = item.strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 15 or abs(int(text)) > LIMIT:
        raise PlanError(f"`{name}` takes integers, got {text[:40]!r}")
    return int(text)


def show(shape: Shape) -> str:
    """A shape in words: ``[64,3,7,7]``."""
    return "[" + ",".join(map(str, shape)) + "]"
