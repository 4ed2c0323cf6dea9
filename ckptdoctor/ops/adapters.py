"""Ops that merge adapters into the weight: lora dora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Self

from ckptdoctor.ops.base import Effect, Example, Join, Shape, register, show
from ckptdoctor.ops.norms import size_along
from ckptdoctor.ops.values import number, widened

if TYPE_CHECKING:
    from torch import Tensor


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
        return self.merged(*tensors).to(tensors[0].dtype)

    def merged(self, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The sum, as it is computed."""
        delta = widened(b).flatten(1) @ widened(a).flatten(1)
        delta = delta.t() if self.transposed else delta
        return widened(w) + self.scale * delta.reshape(w.shape)

    def out_dtypes(self, dtypes: Sequence[str]) -> tuple[str, ...]:
        """The dtype of W."""
        self.one_dtype(dtypes)
        return (dtypes[0],)


@register
@dataclass(frozen=True)
class Dora(Lora):
    """``dora(scale)``: sources W, A, B, m; ``m * V / |V|`` with ``V = W + scale * (B @ A)``.

    The merged weight; m is ``lora_magnitude_vector``, one value per output; ``|V|`` is the 2-norm of what makes one output.
    ``scale`` and ``;transposed`` as for ``lora``. Source: Liu et al. 2024, eq. 5; ``get_weight_norm`` in
    PEFT's ``dora.py``.
    """

    NAME: ClassVar[str] = "dora"
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        ("dora(2)", ((6, 4), (2, 4), (6, 2), (6,))),
        ("dora(0.5;transposed)", ((4, 6), (2, 4), (6, 2), (6,))),
        ("dora(1)", ((6, 4, 3, 3), (2, 4, 3, 3), (6, 2, 1, 1), (1, 6, 1, 1))),
    )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """That of W."""
        if len(shapes) != 4:
            raise self.refuse(f"takes W, A, B and the magnitudes, here are {len(shapes)}")
        w, out = super().shape(shapes[:3]), shapes[2][0]
        if shapes[3] not in ((out,), (1, out, *[1] * (len(w) - 2))):
            raise self.refuse(f"needs {out} magnitudes, one per output, got {show(shapes[3])}")
        return w

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Computed in float32 at least, returned in the dtype of W."""
        w, a, b, magnitude = tensors
        merged = self.merged(w, a, b)
        axis = 1 if self.transposed else 0
        size = size_along(merged, axis)
        scale = widened(magnitude).reshape(size.shape) / size
        return (merged * scale).to(w.dtype)
