"""The value of one key: read, transformed, its shape checked, and cast where a copy is made."""

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


def make(key: str, fill: Fill, reader: Reader, shape: tuple[int, ...]) -> Tensor:
    """The value for one key, in the file's dtype; it may share memory with what the reader gave.

    Raises :class:`ApplyError` naming the key, or what the reader raises.
    """
    try:
        values = [_dense(source, reader(source)) for source in fill.sources]
        value = values[0] if len(values) == 1 and not fill.ops else parse_chain(fill.ops).run(values)
        if value.shape != shape:
            raise ApplyError(f"the plan makes {show(tuple(value.shape))}, the model has {show(shape)}")
        return value
    except Exception as error:
        raise _with_key(key, fill, error) from error


def to_write(key: str, fill: Fill, reader: Reader, want: Want) -> Tensor:
    """The value for one key, contiguous on the CPU; a copy only where its memory is not so already.

    Raises :class:`ApplyError` or what the reader raises.
    """
    value = make(key, fill, reader, want.shape)
    plain = value.dtype == want.dtype and value.is_contiguous() and value.device.type == "cpu"
    if plain and not value.is_conj() and not value.is_neg():
        return value
    try:
        return private(value, want)
    except Exception as error:
        raise _with_key(key, fill, error) from error


def _with_key(key: str, fill: Fill, error: Exception) -> CkptDoctorError:
    """The error with the key's name."""
    if isinstance(error, CkptDoctorError):
        return type(error)(f"`{printable(key)}`: {error}", error.diagnostics)
    what = f"{type(error).__name__}: {printable(str(error))}"
    return ApplyError(f"`{printable(key)}` from {listing(fill.sources)} could not be made: {what}")


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


def private(value: Tensor, want: Want) -> Tensor:
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
