"""Wrapper segments come off where their row says so, and are counted there."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.wrappers import WRAPPERS, Wrapper, strip_key, strip_keys, wrapper_counts


@pytest.mark.parametrize("row", WRAPPERS, ids=lambda row: row.segment)
def test_every_row_is_taken_off_in_front_and_inside(row: Wrapper) -> None:
    front, inside = f"{row.segment}.a.weight", f"a.{row.segment}.weight"
    assert strip_key(front) == "a.weight"
    assert strip_key(inside) == ("a.weight" if row.anywhere else inside)
    assert wrapper_counts([front, "a.weight"]) == {row.segment: 1}
    assert wrapper_counts([inside, "b"]) == ({row.segment: 1} if row.anywhere else {})


_SEGMENTS = st.sampled_from([*(w.segment for w in WRAPPERS), "a", "0", "", "_expand"])
_KEYS = st.lists(st.lists(_SEGMENTS, min_size=1, max_size=4).map(".".join), unique=True, max_size=6)


@given(_KEYS, st.sampled_from(["", "module.", "module._orig_mod.", "_forward_module.module."]))
@settings(max_examples=500)
def test_all_keys_at_once_are_each_key_alone(keys: list[str], front: str) -> None:
    wrapped = [front + key for key in keys]
    assert list(strip_keys(wrapped)) == [strip_key(key) for key in wrapped]
    each = Counter[str]()
    for key in wrapped:
        each.update(wrapper_counts([key]))
    assert wrapper_counts(wrapped) == each
