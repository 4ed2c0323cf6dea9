"""Checks over the whole alignment that can only take claims back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State


def duplicates(state: State) -> None:
    """Several checkpoint keys fall together once wrapper names are off."""


def rivals(state: State) -> None:
    """Another part of the checkpoint explains the model as well."""


def families(state: State) -> None:
    """Some members of a numbered family match and others find no partner."""


def variant(state: State) -> None:
    """Too little fits: another architecture or variant."""
