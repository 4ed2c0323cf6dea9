"""Replaying a plan's chain on the file's tensors, and comparing bits.

Nothing here is shared with ``apply`` but the ops themselves, which have their own laws.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

from ckptdoctor.casts import CAST_CLASSES, CastClass
from ckptdoctor.errors import CkptDoctorError, VerifyError
from ckptdoctor.keys import printable
from ckptdoctor.ops import parse_chain
from ckptdoctor.ops.bits import dense, same_bits
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import listing
from ckptdoctor.verify.casting import classify

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HARMLESS: tuple[CastClass, ...] = ("lossless", "rounding")

Reader = Callable[[str], "Tensor"]
Casts = dict[str, tuple[str, CastClass]]  # model key -> dtype in the file, class of the cast


class Fills(Protocol):
    """A plan written out, key by key."""

    @property
    def fills(self) -> Mapping[str, Fill]:
        """Model key -> how it is filled."""


def replayed(key: str, fill: Fill, reader: Reader, found: Tensor, casts: Casts) -> Iterator[str]:
    """What is wrong with ``found`` for ``key``; its cast goes into ``casts``."""
    if not fill.ops and len(fill.sources) == 1 and _is_there(reader, fill.sources[0], found):
        casts[key] = (dtype_name(found.dtype), "lossless")
        return
    made = _made(key, fill, reader)
    if made.dtype == found.dtype and made.device == found.device:
        due = made
    elif not made.is_complex() or found.is_complex():
        due = made.to(found.device).to(found.dtype)
    else:
        due = made.real.to(found)
    if not same_bits(found, due):
        chain = str(parse_chain(fill.ops))
        yield f"{quoted(key)} is not `{chain}` of {listing(fill.sources)}: {_difference(found, due)}"
        return
    casts[key] = (dtype_name(made.dtype), classify(made, found))


def _is_there(reader: Reader, source: str, found: Tensor) -> bool:
    """Whether it is the reader's own memory of that key, so that there is nothing to compare."""
    asked: Callable[[str, Tensor], bool] | None = getattr(reader, "holds", None)
    return asked is not None and asked(source, found)


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` as "float32"."""
    return str(dtype).removeprefix("torch.")


def _made(key: str, fill: Fill, reader: Reader) -> Tensor:
    try:
        values = [dense(reader(source).detach()) for source in fill.sources]
        return values[0] if len(values) == 1 and not fill.ops else parse_chain(fill.ops).run(values)
    except CkptDoctorError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {printable(str(error))}"
        raise VerifyError(
            f"{quoted(key)} could not be checked, {listing(fill.sources)} gave {what}"
        ) from error


def _difference(found: Tensor, due: Tensor) -> str:
    if found.shape != due.shape:
        return f"shape {list(found.shape)}, due {list(due.shape)}"
    other = int((found != due).sum())
    return f"{other} of {found.numel()} values differ" if other else "only signs of zero or NaN bits differ"


def lossy_casts(casts: Mapping[str, tuple[str, CastClass]], accept: Collection[str]) -> Iterator[str]:
    """Casts that lost values and that nobody accepted."""
    why = {
        "range": "values do not fit (a finite value became infinite, or small ones became 0)",
        "truncation": "fractions or imaginary parts were cut off",
        "payload": "8-bit or packed codes mean nothing without their scales",
    }
    found = {name for _, name in casts.values()}
    for name in CAST_CLASSES:
        if name in found and name not in HARMLESS and name not in accept:
            keys = [key for key, (_, what) in casts.items() if what == name]
            yield f"the cast of {listing(keys)} loses values: {why[name]}; --accept {name} allows it"


def words(problems: Sequence[str], state: str) -> str:
    """All problems as one message; ``state`` says what became of the target."""
    more = [f"... and {len(problems) - 8} more"] if len(problems) > 8 else []
    return "\n  ".join([f"verification failed; {state}:", *problems[:8], *more])


def quoted(key: str) -> str:
    """A key for a message."""
    return f"`{printable(key)}`"
