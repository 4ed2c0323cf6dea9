"""Ops that fold a reparametrisation into the plain weight: spectral_norm bn_weight bn_bias lora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.ops.base import Effect, Example, Join, Shape, register, show
from ckptdoctor.ops.values import number, widened

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class SpectralNorm(Join):
    """``spectral_norm(dim)``: sources w, u, v; ``w / (u . W v)``, the weight in eval mode.

    W is w with ``dim`` first (1 for transposed convolutions, else 0) and the rest flattened. Old names
    ``weight_orig``, ``weight_u``, ``weight_v``; new ones ``parametrizations.weight.original``, ``0._u``,
    ``0._v``. Source: Miyato et al. 2018, eq. 8 and ``torch.nn.utils.spectral_norm``.
    """

    dim: int

    NAME: ClassVar[str] = "spectral_norm"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("spectral_norm(0)", ((5, 3, 2), (5,), (6,))),
        ("spectral_norm(1)", ((5, 3, 2), (3,), (10,))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of w."""
        if len(shapes) != 3:
            raise self.refuse(f"takes three sources, w, u and v, here are {len(shapes)}")
        w, u, v = shapes
        if not 0 <= self.dim < len(w):
            raise self.refuse(f"names dimension {self.dim}, w is {show(w)}")
        rest = prod(w[: self.dim] + w[self.dim + 1 :])
        if u != (w[self.dim],) or v != (rest,):
            raise self.refuse(f"needs u [{w[self.dim]}] and v [{rest}], got {show(u)} and {show(v)}")
        return w

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of w."""
        w, u, v = map(widened, tensors)
        matrix = w.movedim(self.dim, 0).reshape(len(u), len(v))
        return (w / (u @ (matrix @ v))).to(tensors[0].dtype)


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

    The weight of a convolution with its BatchNorm folded in; forward only. Source:
    ``torch.nn.utils.fuse_conv_bn_weights``.
    """

    NAME: ClassVar[str] = "bn_weight"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (("bn_weight(1e-05)", ((4, 3, 2, 2), (4,), (4,))),)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of w."""
        if len(shapes) != 3 or not shapes[0]:
            raise self.refuse("takes three sources: w, gamma, running_var")
        self.vectors(shapes[1:], shapes[0][0])
        return shapes[0]

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of w."""
        w, gamma, variance = tensors
        scale = self.scale(gamma, variance).reshape(-1, *[1] * (w.ndim - 1))
        return (widened(w) * scale).to(w.dtype)


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
class Lora(Join):
    """``lora(scale)``: sources W, A, B; the merged weight ``W + scale * (B @ A)``.

    A is [rank, in, ...], B is [out, rank, ...]; all but the first dimension is flattened, so convolutions
    with a 1x1 B fit too. ``scale`` is alpha / rank (alpha / sqrt(rank) for rsLoRA), which is in the adapter's
    config and not in its tensors. ``lora(scale;transposed)`` is for layers that keep W as [in, out] (Conv1D,
    ``fan_in_fan_out``).
    Source: Hu et al. 2021, section 4.1.
    """

    scale: float
    transposed: bool = False

    NAME: ClassVar[str] = "lora"
    EFFECT: ClassVar[Effect] = "computed"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("lora(2)", ((6, 4), (2, 4), (6, 2))),
        ("lora(0.5;transposed)", ((4, 6), (2, 4), (6, 2))),
        ("lora(1)", ((6, 4, 3, 3), (2, 4, 3, 3), (6, 2, 1, 1))),
    )

    @classmethod
    def parse(cls, args: str) -> Self:
        """A number, and the word ``transposed`` if W is."""
        scale, semicolon, word = args.partition(";")
        made = cls(number(scale, cls.NAME), bool(semicolon))
        if semicolon and word != "transposed":
            raise made.refuse("knows only the word `transposed` after the scale")
        return made

    def args(self) -> str:
        """As :meth:`parse` reads it."""
        return repr(self.scale) + (";transposed" if self.transposed else "")

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of W."""
        if len(shapes) != 3 or min(map(len, shapes)) < 2:
            raise self.refuse(
                f"takes W, A and B of two dimensions or more, got {', '.join(map(show, shapes))}"
            )
        w, a, b = shapes
        out, into = b[0], prod(a[1:])
        due = (into, out) if self.transposed else (out, into)
        if (w[0], prod(w[1:])) != due or a[0] != prod(b[1:]):
            raise self.refuse(f"does not fit W {show(w)}, A {show(a)}, B {show(b)}")
        return w

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of W."""
        w, a, b = tensors
        delta = widened(b).flatten(1) @ widened(a).flatten(1)
        delta = delta.t() if self.transposed else delta
        return (widened(w) + self.scale * delta.reshape(w.shape)).to(w.dtype)

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """The dtype of W."""
        self.one_dtype(dtypes)
        return (dtypes[0],)
