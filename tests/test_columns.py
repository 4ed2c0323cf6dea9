"""Columns give what a loop over their items gives."""

from collections import Counter
from itertools import repeat
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.columns import FEW, rows, tally


class Row(NamedTuple):
    key: str
    size: int
    kind: str = "plain"


@given(st.lists(st.integers(0, 3 * FEW)))
def test_a_tally_is_what_counter_says_in_the_same_order(items: list[int]) -> None:
    assert tally(iter(items)) == Counter(items) and list(tally(items)) == list(Counter(items))


@given(st.lists(st.tuples(st.text(), st.integers())))
def test_rows_are_named_tuples(pairs: list[tuple[str, int]]) -> None:
    made = rows(Row, [k for k, _ in pairs], [n for _, n in pairs], repeat("plain"))
    assert made == [Row(*pair) for pair in pairs] and all(type(row) is Row for row in made)


def test_a_short_column_is_an_error() -> None:
    with pytest.raises(ValueError, match="too short"):
        rows(Row, ["a", "b"], [1], repeat("plain"))
