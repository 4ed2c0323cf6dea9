"""Machine-readable reports; each has ``format``, the version of its own schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ckptdoctor.diagnosis import Diagnosis


def render(diagnosis: Diagnosis, stream: TextIO) -> None:
    """``Diagnosis.to_dict()`` as JSON."""
    write(diagnosis.to_dict(), stream)


def write(data: Any, stream: TextIO) -> None:
    """One JSON document. Pure ASCII, so that no byte of a file's keys reaches a terminal raw."""
    json.dump(data, stream, indent=1, ensure_ascii=True)
    stream.write("\n")
