"""How one key of the model gets its tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import repeat
from typing import Literal, NamedTuple

from ckptdoctor.columns import rows

FillKind = Literal["load", "keep", "reinit", "tie"]


class Fill(NamedTuple):
    """How one key of the model gets its tensor.

    ``load``: from the checkpoint's ``sources`` (keys as in the file) through ``ops`` (op texts, none for a
    plain copy). ``tie``: the same tensor as the model's key ``tied_to``, whose sources and ops are repeated
    here. ``keep`` and ``reinit``: the model's own values. ``cast`` is the class of the dtype change, if any.
    """

    target: str
    kind: FillKind
    sources: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    tied_to: str = ""
    cast: str = ""


def copied(targets: Collection[str], sources: Iterable[tuple[str, ...]]) -> list[Fill]:
    """Loads of one tensor each, as it is."""
    return rows(Fill, targets, repeat("load"), sources, repeat(()), repeat(""), repeat(""))
