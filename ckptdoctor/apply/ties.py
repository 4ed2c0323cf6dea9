"""Keys that are one tensor in the model must get one value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ckptdoctor.apply.staging import Expansion, Reader
from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable
from ckptdoctor.ops.bits import same_bits
from ckptdoctor.receipt import listing

if TYPE_CHECKING:
    from torch import Tensor


def check_ties(expansion: Expansion, groups: Iterable[Sequence[str]], made: Mapping[str, Tensor]) -> None:
    """Raise :class:`ApplyError` when keys of a group got different values; in torch the last wins."""
    for group in groups:
        first, *others = [key for key in group if key in made] or [""]
        for other in others:
            if not same_bits(made[first], made[other]):
                raise _conflict(expansion, first, other)


def check_copies(expansion: Expansion, reader: Reader) -> None:
    """Raise :class:`ApplyError` when a tensor that is left out as a copy holds other values."""
    for key, other in expansion.copies.items():
        if not same_bits(reader(key), reader(other)):
            raise ApplyError(
                f"the checkpoint's `{printable(key)}` is left out as a copy of `{printable(other)}`, because "
                "the model keeps both in one tensor; but their values differ. Load into a model that does "
                f"not tie them, or give the copy up with --drop '{printable(key)}'"
            )


def _conflict(expansion: Expansion, first: str, other: str) -> ApplyError:
    a, b = expansion.fills[first].sources, expansion.fills[other].sources
    return ApplyError(
        f"the model ties `{printable(first)}` and `{printable(other)}`: they are one tensor, but the "
        f"checkpoint has two different ones, {listing(a)} and {listing(b)}. Leave one of them out "
        f"(--drop '{printable(b[0])}' keeps the first), or load into a model that does not tie them"
    )
