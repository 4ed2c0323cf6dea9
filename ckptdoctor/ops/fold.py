"""Ops that fold BatchNorm and branches into one layer: bn_weight bn_bias repvgg_weight repvgg_bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.ops.base import Effect, Example, Join, Shape, register, show
from ckptdoctor.ops.values import number, widened

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Fold(Join):
    """A layer and the BatchNorm behind it; eps is in no checkpoint, so it is given."""

    eps: float

    @classmethod
    def parse(cls, args: str) -> Self:
        """One positive number."""
        made = cls(number(args, cls.NAME))
        if made.eps <= 0:
            raise made.refuse("needs an eps above 0 (torch's default is 1e-05)")
        return made

    def args(self) -> str:
        """The number."""
        return repr(self.eps)

    def vectors(self, shapes: Sequence[Shape], channels: int) -> None:
        """Refuse unless all are vectors over the channels."""
        for shape in shapes:
            if shape != (channels,):
                raise self.refuse(f"needs vectors of {channels} channels, got {show(shape)}")

    def scale(self, gamma: Tensor, variance: Tensor) -> Tensor:
        """gamma / sqrt(var + eps)."""
        return widened(gamma) * (widened(variance) + self.eps).rsqrt()


@register
@dataclass(frozen=True)
class BnWeight(_Fold):
    """``bn_weight(eps)``: sources w, gamma, running_var; ``w * gamma / sqrt(var + eps)`` along dim 0.

    The weight of a convolution or linear layer with the BatchNorm behind it folded in; forward only, since
    w and the statistics cannot be told apart afterwards. ``bn_weight(eps;transposed)`` is for transposed
    convolutions, which keep the outputs of a group in dim 1; the number of groups follows from the sizes.
    Source: ``torch.nn.utils.fuse_conv_bn_weights``.
    """

    transposed: bool = False

    NAME: ClassVar[str] = "bn_weight"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("bn_weight(1e-05)", ((4, 3, 2, 2), (4,), (4,))),
        ("bn_weight(0.001;transposed)", ((4, 3, 2), (6,), (6,))),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """A positive number, and the word ``transposed`` for transposed convolutions."""
        eps, semicolon, word = args.partition(";")
        made = replace(super().parse(eps), transposed=bool(semicolon))
        if semicolon and word != "transposed":
            raise made.refuse("knows only the word `transposed` after eps")
        return made

    def args(self) -> str:
        """As :meth:`parse` reads it."""
        return super().args() + (";transposed" if self.transposed else "")

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of w."""
        if len(shapes) != 3 or len(shapes[0]) < 1 + self.transposed or len(shapes[1]) != 1:
            raise self.refuse("takes three sources: w, gamma, running_var")
        w, (channels,) = shapes[0], shapes[1]
        self.vectors(shapes[1:], channels if self.transposed else w[0])
        if self.transposed and (not channels or not w[1] or channels % w[1] or w[0] % (channels // w[1])):
            raise self.refuse(f"has {channels} channels, which w {show(w)} cannot give in any groups")
        return w

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of w."""
        w, gamma, variance = tensors
        scale = self.scale(gamma, variance)
        if not self.transposed:
            return (widened(w) * scale.reshape(-1, *[1] * (w.ndim - 1))).to(w.dtype)
        groups = len(scale) // w.shape[1]
        grouped = widened(w).reshape(groups, -1, *w.shape[1:])
        scale = scale.reshape(groups, 1, w.shape[1], *[1] * (w.ndim - 2))
        return (grouped * scale).reshape(w.shape).to(w.dtype)


@register
@dataclass(frozen=True)
class BnBias(_Fold):
    """``bn_bias(eps)``: ``beta + (b - mean) * gamma / sqrt(var + eps)``.

    Sources gamma, beta, mean, var, or b and these. The bias of a convolution (b = 0 without one) with its
    BatchNorm folded in; forward only. Source: ``torch.nn.utils.fuse_conv_bn_weights``.
    """

    NAME: ClassVar[str] = "bn_bias"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("bn_bias(1e-05)", ((4,), (4,), (4,), (4,))),
        ("bn_bias(0.001)", ((4,), (4,), (4,), (4,), (4,))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """A vector over the channels."""
        if len(shapes) not in (4, 5) or len(shapes[0]) != 1:
            raise self.refuse("takes gamma, beta, mean, var, or the bias and these")
        self.vectors(shapes, shapes[0][0])
        return shapes[0]

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of beta."""
        gamma, beta, mean, variance = tensors[-4:]
        shift = -widened(mean) if len(tensors) == 4 else widened(tensors[0]) - widened(mean)
        return (widened(beta) + shift * self.scale(gamma, variance)).to(beta.dtype)


@register
@dataclass(frozen=True)
class RepvggWeight(_Fold):
    """``repvgg_weight(eps)``: the kernel of parallel branches, each with its BatchNorm, as one convolution.

    Sources w, gamma, running_var of each convolution, the largest (odd) kernel first; then gamma, running_var
    of the BatchNorm alone, if the input is added as well. Smaller kernels are padded with zeros to the size
    of the first; the input is a kernel that is 1 in the middle of its own channel. Groups follow from the
    sizes. Every branch keeps the size of the image (padding of half the kernel). Forward only. Source: Ding
    et al. 2021, section 3.3; ``get_equivalent_kernel_bias`` in RepVGG's ``repvgg.py``.
    """

    NAME: ClassVar[str] = "repvgg_weight"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("repvgg_weight(1e-05)", ((4, 2, 3, 3), (4,), (4,), (4, 2, 1, 1), (4,), (4,), (4,), (4,))),
        ("repvgg_weight(0.001)", ((4, 3, 3, 3), (4,), (4,), (4, 3, 1, 1), (4,), (4,))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of the first kernel."""
        if len(shapes) < 3 or len(shapes) % 3 == 1 or len(shapes[0]) < 3:
            raise self.refuse("takes w, gamma, var of each convolution, then maybe gamma, var of the input's")
        first, kernels = shapes[0], shapes[: len(shapes) // 3 * 3 : 3]
        for kernel in kernels:
            fits = len(kernel) == len(first) and kernel[:2] == first[:2]
            if not fits or any(k % 2 == 0 or k > most for k, most in zip(kernel[2:], first[2:], strict=True)):
                raise self.refuse(
                    f"needs odd kernels, no larger than the first {show(first)}, got {show(kernel)}"
                )
        self.vectors([s for i, s in enumerate(shapes) if i % 3 or i >= 3 * len(kernels)], first[0])
        if len(shapes) % 3 and (not first[1] or first[0] % first[1]):
            raise self.refuse(f"adds the input to {first[0]} channels, which {show(first)} has not as inputs")
        return first

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of the first kernel."""
        from torch.nn.functional import pad

        first = tensors[0]
        whole = len(tensors) // 3 * 3
        total = widened(first).new_zeros(first.shape)
        for w, gamma, variance in zip(tensors[:whole:3], tensors[1:whole:3], tensors[2:whole:3], strict=True):
            margins = [(m - k) // 2 for m, k in zip(first.shape[2:], w.shape[2:], strict=True)]
            scale = self.scale(gamma, variance).reshape(-1, *[1] * (w.ndim - 1))
            total += pad(widened(w) * scale, [m for margin in reversed(margins) for m in (margin, margin)])
        if len(tensors) % 3:
            middle = tuple(k // 2 for k in first.shape[2:])
            for channel, value in enumerate(self.scale(*tensors[-2:])):
                total[(channel, channel % first.shape[1], *middle)] += value
        return total.to(first.dtype)


@register
@dataclass(frozen=True)
class RepvggBias(_Fold):
    """``repvgg_bias(eps)``: the sum over branches of ``beta - mean * gamma / sqrt(var + eps)``.

    Sources gamma, beta, mean, var of each branch's BatchNorm, in any order of the branches. Source: as for
    ``repvgg_weight``.
    """

    NAME: ClassVar[str] = "repvgg_bias"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("repvgg_bias(1e-05)", ((4,),) * 8),)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """A vector over the channels."""
        if len(shapes) % 4 or len(shapes[0]) != 1:
            raise self.refuse("takes gamma, beta, mean, var of each branch")
        self.vectors(shapes, shapes[0][0])
        return shapes[0]

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of beta."""
        total = widened(tensors[1]).new_zeros(tensors[1].shape)
        for i in range(0, len(tensors), 4):
            gamma, beta, mean, variance = tensors[i : i + 4]
            total += widened(beta) - widened(mean) * self.scale(gamma, variance)
        return total.to(tensors[1].dtype)
