"""Ops that fit a tensor to another image size or channel count. All are lossy: they need a decision."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.base import LIMIT, Effect, Example, Shape, Unary, integer, ints, register, show
from ckptdoctor.ops.values import widened

if TYPE_CHECKING:
    from torch import Tensor


WORDS = ("antialias", "bilinear")


@register
@dataclass(frozen=True)
class ResizeGrid(Unary):
    """``resize_grid(prefix;h,w;H,W)``: resample position embeddings from a grid of h x w to one of H x W.

    The tensor is ``[..., prefix + h*w, C]``; ``prefix`` tokens (class token, registers) are kept as they are.
    Bicubic in float32, corners not aligned, by size and not by factor. Words may follow, in this order:
    ``;last=3`` keeps tokens behind the grid (the 3 extra rows of BEiT's relative position table);
    ``;antialias`` filters before it makes the grid smaller, as timm does (DINOv2 and transformers do not);
    ``;bilinear`` instead of bicubic. One dimension is a grid of height 1:
    ``resize_grid(0;1,77;1,248;bilinear)``. Relative position tables have grids of ``2 * window - 1``: ``resize_grid(0;13,13;23,23)``. Lossy.
    Source: ``resample_abs_pos_embed`` and ``resample_relative_position_bias_table`` of timm,
    ``interpolate_pos_encoding`` of DINOv2 (which asks by factor and may be off by rounding).
    """

    prefix: int
    old: tuple[int, int]
    new: tuple[int, int]
    last: int = 0
    words: tuple[str, ...] = ()

    NAME: ClassVar[str] = "resize_grid"
    EFFECT: ClassVar[Effect] = "lossy"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("resize_grid(1;2,3;4,5)", ((1, 7, 3),)),
        ("resize_grid(0;3,3;5,5;antialias)", ((9, 2),)),
        ("resize_grid(0;3,3;5,5;last=3)", ((12, 2),)),
        ("resize_grid(0;1,4;1,6;bilinear)", ((4, 2),)),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """``prefix;h,w;H,W`` and maybe words."""
        prefix, *grids = (groups := args.split(";"))[:3]
        words = groups[3:]
        last = words.pop(0).removeprefix("last=") if words and words[0].startswith("last=") else "0"
        if len(grids) != 2 or words != [word for word in WORDS if word in words]:
            raise PlanError(
                f"`{cls.NAME}` is written {cls.NAME}(prefix;h,w;H,W), maybe with ;last=n, ;antialias, "
                f";bilinear, got {args[:60]!r}"
            )
        (h, w), (high, wide) = (ints(grid, cls.NAME, 2) for grid in grids)
        return cls(integer(prefix, cls.NAME), (h, w), (high, wide), integer(last, cls.NAME), tuple(words))

    def args(self) -> str:
        """As :meth:`parse` reads it."""
        old, new = (",".join(map(str, size)) for size in (self.old, self.new))
        last = (f"last={self.last}",) if self.last else ()
        return ";".join((str(self.prefix), old, new, *last, *self.words))

    def shape(self, shape: Shape) -> Shape:
        """The new number of tokens."""
        if min(self.prefix, self.last) < 0 or min(*self.old, *self.new) < 1 or prod(self.new) > LIMIT:
            raise self.refuse("needs grids of 1 x 1 or more")
        kept = self.prefix + self.last
        if len(shape) < 2 or shape[-2] != kept + prod(self.old) or not prod(shape):
            raise self.refuse(
                f"needs {kept} + {self.old[0]} * {self.old[1]} tokens before the last dimension, "
                f"got {show(shape)}"
            )
        return (*shape[:-2], kept + prod(self.new), shape[-1])

    def run(self, tensor: Tensor) -> Tensor:
        """Computed in float32 at least, returned in the dtype of the source."""
        import torch
        from torch.nn.functional import interpolate

        flat = tensor.reshape(-1, *tensor.shape[-2:])
        first, grid, last = flat.split_with_sizes([self.prefix, prod(self.old), self.last], 1)
        image = widened(grid).reshape(len(flat), *self.old, -1).permute(0, 3, 1, 2)
        image = interpolate(
            image,
            size=self.new,
            mode="bilinear" if "bilinear" in self.words else "bicubic",
            align_corners=False,
            antialias="antialias" in self.words,
        )
        tokens = image.permute(0, 2, 3, 1).flatten(1, 2).to(tensor.dtype)
        return torch.cat([first, tokens, last], 1).reshape(self.shape(tuple(tensor.shape)))


@register
@dataclass(frozen=True)
class Tile(Unary):
    """``tile(dim,size)``: repeat along ``dim`` until ``size``, scaled by old / new size.

    A stem of 3 channels -> N. On inputs that are alike the sum stays as it was when ``size`` is a multiple.
    Source: ``adapt_input_conv`` of timm.
    """

    dim: int
    size: int

    NAME: ClassVar[str] = "tile"
    EFFECT: ClassVar[Effect] = "lossy"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("tile(1,5)", ((4, 3, 2, 2),)),)

    def shape(self, shape: Shape) -> Shape:
        """The dimension has the new size."""
        dim = self._dim(self.dim, shape)
        if self.size < 1 or not shape[dim] or self.size * prod(shape) > LIMIT:
            raise self.refuse(f"cannot repeat dimension {dim} of {show(shape)} to {self.size}")
        return (*shape[:dim], self.size, *shape[dim + 1 :])

    def run(self, tensor: Tensor) -> Tensor:
        """Computed in float32 at least, returned in the dtype of the source."""
        import torch

        index = torch.arange(self.size, device=tensor.device) % tensor.shape[self.dim]
        scale = tensor.shape[self.dim] / self.size
        return (widened(tensor).index_select(self.dim, index) * scale).to(tensor.dtype)
