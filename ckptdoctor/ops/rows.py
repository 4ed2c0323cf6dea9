"""Ops that choose, cut or add rows: pad pad_mean take."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.keys import printable
from ckptdoctor.ops.base import LIMIT, Effect, Example, Shape, Unary, ints, register, show
from ckptdoctor.ops.values import widened

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Pad(Unary):
    """``pad(dim,size)``: zeros appended along ``dim`` until it has ``size`` (a vocabulary of 50257 -> 50304).

    Lossy, because the new rows are invented: needs a decision. Source: Megatron-LM's
    ``make_vocab_size_divisible_by``, which pads 50257 to 50304.
    """

    dim: int
    size: int

    NAME: ClassVar[str] = "pad"
    EFFECT: ClassVar[Effect] = "lossy"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("pad(0,5)", ((3, 2),)), ("pad(-1,2)", ((3, 2),)))

    def shape(self, shape: Shape) -> Shape:
        """The dimension grown."""
        dim = self._dim(self.dim, shape)
        if self.size < shape[dim]:
            raise self.refuse(f"is smaller than dimension {dim} of {show(shape)}; cut rows with slice")
        if self.size * math.prod(shape[:dim] + shape[dim + 1 :]) > LIMIT:
            raise self.refuse(f"makes a tensor of absurd size from {show(shape)}")
        return (*shape[:dim], self.size, *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        out = tensor.new_zeros(self.shape(tuple(tensor.shape)))
        out.narrow(self.dim, 0, tensor.shape[self.dim]).copy_(tensor)
        return out


@register
@dataclass(frozen=True)
class PadMean(Pad):
    """``pad_mean(dim,size)``: as ``pad``, but each new slice is the mean of the old ones.

    For tokens added to a vocabulary: an embedding of zeros has a logit of 0, which may be larger than all
    trained ones; the mean has an ordinary one. The mean is taken in float32 for half precision. Lossy.
    Source: Hewitt 2021, "Initializing new word embeddings for pretrained language models";
    ``mean_resizing`` of transformers draws around the same mean.
    """

    NAME: ClassVar[str] = "pad_mean"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("pad_mean(0,5)", ((3, 2),)), ("pad_mean(-1,3)", ((3, 2),)))

    def shape(self, shape: Shape) -> Shape:
        """The dimension grown."""
        if not shape or not math.prod(shape):
            raise self.refuse(f"needs values to take the mean of, got {show(shape)}")
        return super().shape(shape)

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        import torch

        added = self.size - tensor.shape[self.dim]
        mean = widened(tensor).mean(self.dim, keepdim=True).to(tensor.dtype)
        return torch.cat([tensor, *[mean] * added], self.dim)


@register
@dataclass(frozen=True)
class Take(Unary):
    """``take(dim;4,0,7)``: these elements along ``dim``, in this order (10 of 1000 classes). Lossy.

    Source: ``torch.index_select``.
    """

    dim: int
    rows: tuple[int, ...]

    NAME: ClassVar[str] = "take"
    EFFECT: ClassVar[Effect] = "lossy"
    PARTIAL: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("take(0;2,0)", ((4, 3),)), ("take(1;1)", ((2, 3),)))

    @classmethod
    def parse(cls, args: str) -> Self:
        """``dim;rows``."""
        dim, semicolon, rows = args.partition(";")
        if not semicolon:
            raise PlanError(f"`take` is written take(dim;row,row,...), got {args[:40]!r}")
        return cls(ints(dim, cls.NAME, 1)[0], ints(rows, cls.NAME))

    def args(self) -> str:
        """``dim;rows``."""
        return f"{self.dim};{','.join(map(str, self.rows))}"

    def shape(self, shape: Shape) -> Shape:
        """The dimension counts the rows."""
        dim = self._dim(self.dim, shape)
        if not self.rows or len(set(self.rows)) != len(self.rows):
            raise self.refuse("must name at least one row, each once")
        if not all(0 <= r < shape[dim] for r in self.rows):
            raise self.refuse(f"names a row outside dimension {dim} of {show(shape)}")
        return (*shape[:dim], len(self.rows), *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """A copy."""
        import torch

        return tensor.index_select(self.dim, torch.tensor(self.rows, device=tensor.device))


_FILE = re.compile(r"(?<=;)@([^()|]+)(?=\))")


def resolve_rows(ops: str) -> str:
    """The op texts with ``take(0;@rows.csv)`` written out as ``take(0;7,2,9)``; see :func:`read_rows`.

    A plan holds the numbers and never the file. Raises :class:`PlanError`.
    """
    return _FILE.sub(lambda m: ",".join(map(str, read_rows(m[1].strip()))), ops)


def read_rows(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The row numbers that a file lists for ``take``: counted from 0, one per line, ``#`` begins a comment.

    Of a line of comma separated values the first counts, so a class map ``old row,name`` can be used as
    it is; a first line without any number is a heading. Raises :class:`PlanError` naming file and line.
    """
    shown = printable(os.fspath(path))
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{shown} cannot be read as a list of rows: {error}") from None
    rows: dict[int, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        cell = line.partition("#")[0].partition(",")[0].strip().strip('"')
        if not cell or (number == 1 and not re.search(r"\d", line)):
            continue
        if not (cell.isascii() and cell.isdigit()) or len(cell) > 15:
            raise PlanError(f"{shown}:{number}: expected a row number, counted from 0, got {cell[:40]!r}")
        if int(cell) in rows:
            raise PlanError(f"{shown}:{number}: row {int(cell)} is there already, in line {rows[int(cell)]}")
        rows[int(cell)] = number
    if not rows:
        raise PlanError(f"{shown} lists no row numbers; expected one per line, counted from 0")
    return tuple(rows)
