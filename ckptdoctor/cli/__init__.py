"""The command line: thin commands over `ckptdoctor.api`, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 fine, 1 findings, 2 could not check."""
    words = list(sys.argv[1:] if args is None else args)
    asked = plain_inspect(words)
    if asked is None or "_CKPTDOCTOR_COMPLETE" in os.environ:
        from ckptdoctor.cli.commands import group
        from ckptdoctor.cli.running import run

        sys.exit(run(group, words))
    from ckptdoctor.cli.ending import ended
    from ckptdoctor.cli.inspecting import inspected

    sys.exit(ended(lambda: inspected(*asked), words))


def plain_inspect(words: Sequence[str]) -> tuple[str, str] | None:
    """File and form of ``inspect FILE [--format FORM]``; None for every other command line.

    Programs ask that of many files, and importing click would take a fifth of it.
    """
    match words:
        case ["inspect", file]:
            form = "text"
        case ["inspect", file, "--format", form] | ["inspect", "--format", form, file]:
            pass
        case _:
            return None
    from ckptdoctor.cli.output import FORMATS

    return None if file.startswith("-") or form not in FORMATS else (file, form)
