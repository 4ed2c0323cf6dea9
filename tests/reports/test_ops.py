"""What is told about ops: the page docs/ops.md is what their docstrings say.

`UPDATE_DOCS=1 pytest tests/reports/test_ops.py` writes the page again.
"""

import os
from pathlib import Path

import pytest

from ckptdoctor.ops import OPS
from ckptdoctor.ops.each import Each
from ckptdoctor.reports.ops import find_op, op_entry, ops_markdown

PAGE = Path(__file__).parents[2] / "docs" / "ops.md"
ALL = [*OPS.values(), Each]


def test_the_page_is_what_the_docstrings_say():
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(ops_markdown(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == ops_markdown(), "UPDATE_DOCS=1 writes it again"


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.NAME)
def test_every_op_says_how_it_is_written_what_it_does_and_where_that_is_from(op):
    entry = op_entry(op)
    assert entry.text.startswith(f"``{op.NAME}")
    assert "Source: " in entry.text, "a formula or a layout has a source"
    assert entry.effect and entry.example and entry.way_back
    assert f"### {op.NAME}\n" in ops_markdown()


@pytest.mark.parametrize(
    ("name", "way_back"),
    [
        ("regroup", "`interleave(2;1,1,1)`"),
        ("concat_zero", "`chunk_zero(0,0,3,1)` and `chunk_zero(0,2,3,1)`"),
        ("chunk", "together with the other parts"),
        ("lora", "none: its sources cannot be told apart"),
        ("sumdim", "none: the result does not hold"),
    ],
)
def test_the_way_back_is_the_ops_own(name, way_back):
    assert op_entry(find_op(name)).way_back.startswith(way_back)
