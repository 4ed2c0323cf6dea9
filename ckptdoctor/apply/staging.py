"""Everything that can fail before the first write: read, transform, cast, check, keep aside."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ckptdoctor.errors import ApplyError, CkptDoctorError
from ckptdoctor.keys import printable
from ckptdoctor.ops import parse_chain
from ckptdoctor.ops.base import show
from ckptdoctor.ops.bits import dense
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import listing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Reader = Callable[[str], "Tensor"]
OnTensor = Callable[[str], None]


class Expansion(Protocol):
    """A plan written out, key by key; `ckptdoctor.plan.expand` makes it."""

    @property
    def fills(self) -> Mapping[str, Fill]:
        """Model key -> how it is filled; every key of the model's state dict."""

    @property
    def unused(self) -> Mapping[str, str]:
        """Checkpoint key -> why nothing is filled from it."""

    @property
    def copies(self) -> Mapping[str, str]:
        """Unused checkpoint key -> the key whose values it has to repeat."""


@dataclass(frozen=True, slots=True)
class Want:
    """What the place of a tensor asks for. ``dtype`` None: as the file has it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    device: torch.device | str = "cpu"
    strides: tuple[int, ...] | None = None  # None: contiguous


def stage(
    expansion: Expansion, reader: Reader, wants: Mapping[str, Want], on_tensor: OnTensor | None = None
) -> dict[str, Tensor]:
    """For each ``load`` fill a private tensor of the wanted shape, dtype and device.

    Raises :class:`ApplyError` naming the key; nothing was written when it does.
    """
    staged = {}
    for key, fill in expansion.fills.items():
        if fill.kind == "load":
            staged[key] = stage_one(key, fill, reader, wants[key])
            if on_tensor is not None:
                on_tensor(key)
    return staged


def stage_one(key: str, fill: Fill, reader: Reader, want: Want) -> Tensor:
    """The value for one key. Raises :class:`ApplyError` or what the reader raises."""
    try:
        value = parse_chain(fill.ops).run([_dense(source, reader(source)) for source in fill.sources])
        if tuple(value.shape) != want.shape:
            raise ApplyError(f"the plan makes {show(tuple(value.shape))}, the model has {show(want.shape)}")
        return _private(value, want)
    except CkptDoctorError as error:
        raise type(error)(f"`{printable(key)}`: {error}", error.diagnostics) from error
    except Exception as error:
        what = f"{type(error).__name__}: {printable(str(error))}"
        raise ApplyError(
            f"`{printable(key)}` from {listing(fill.sources)} could not be made: {what}"
        ) from error


def _dense(source: str, tensor: Tensor) -> Tensor:
    """The values as they are; what a plain copy would misread is refused."""
    if tensor.is_quantized:
        raise ApplyError(
            f"`{printable(source)}` is quantized ({tensor.dtype}); its integers mean nothing without scale "
            "and zero point. Load it into a model that was prepared and converted the same way"
        )
    if tensor.is_meta:
        raise ApplyError(f"`{printable(source)}` was saved on the meta device: the file has no values for it")
    return dense(tensor.detach())


def _private(value: Tensor, want: Want) -> Tensor:
    """A copy that shares nothing with the file, in the layout of the place it goes to."""
    import torch

    dtype = want.dtype or value.dtype
    if want.strides is None:
        out = torch.empty(want.shape, dtype=dtype, device=want.device)
    else:
        out = torch.empty_strided(want.shape, want.strides, dtype=dtype, device=want.device)
    with warnings.catch_warnings():  # complex -> real warns here; verification refuses it with a reason
        warnings.simplefilter("ignore")
        return out.copy_(value)
