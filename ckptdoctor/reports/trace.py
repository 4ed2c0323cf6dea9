"""``--trace``: what the matching engine saw, pair by pair, as lines on stderr."""

from __future__ import annotations

from typing import TextIO

from ckptdoctor.align.reporter import TextReporter
from ckptdoctor.keys import printable


def write_trace(reporter: TextReporter, stream: TextIO) -> None:
    """The collected lines. Names in them come from files."""
    for line in reporter.lines:
        stream.write(printable(line) + "\n")
