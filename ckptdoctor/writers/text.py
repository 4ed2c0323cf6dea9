"""Reports, plans and files of a contract: text that is there complete, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ckptdoctor.writers.atomic import check_place, replacing


@contextmanager
def text_file(out: Path) -> Iterator[TextIO]:
    """A stream (UTF-8, line feeds) that takes the place of ``out`` when the block ends well.

    A device or a pipe is written to as it is. Raises :class:`~ckptdoctor.errors.ApplyError`.
    """
    if out.exists() and not out.is_file() and not out.is_dir():
        with out.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        return
    check_place(out)
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        yield stream
