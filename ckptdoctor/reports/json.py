"""Machine-readable reports; each has ``format``, the version of its own schema."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ckptdoctor.diagnosis import Diagnosis

TOGETHER = 1 << 14  # pieces of JSON that are written at once


def render(diagnosis: Diagnosis, stream: TextIO) -> None:
    """``Diagnosis.to_dict()`` as JSON."""
    write(diagnosis.to_dict(), stream)


def write(data: Any, stream: TextIO) -> None:
    """One JSON document. Pure ASCII, so that no byte of a file's keys reaches a terminal raw."""
    chunks = json.JSONEncoder(indent=1, ensure_ascii=True).iterencode(data)
    while some := "".join(islice(chunks, TOGETHER)):  # a stream without a buffer takes as long as the encoder
        stream.write(some)
    stream.write("\n")
