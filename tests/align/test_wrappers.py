"""Wrapper segments come off where their row says so, and are counted there."""

from __future__ import annotations

import pytest

from ckptdoctor.wrappers import WRAPPERS, Wrapper, strip_key, wrapper_counts


@pytest.mark.parametrize("row", WRAPPERS, ids=lambda row: row.segment)
def test_every_row_is_taken_off_in_front_and_inside(row: Wrapper) -> None:
    front, inside = f"{row.segment}.a.weight", f"a.{row.segment}.weight"
    assert strip_key(front) == "a.weight"
    assert strip_key(inside) == ("a.weight" if row.anywhere else inside)
    assert wrapper_counts([front, "a.weight"]) == {row.segment: 1}
    assert wrapper_counts([inside, "b"]) == ({row.segment: 1} if row.anywhere else {})
