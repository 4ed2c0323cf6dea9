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

    file, form, exit_zero = asked
    sys.exit(ended(lambda: inspected(file, form, exit_zero=exit_zero), words))


def plain_inspect(words: Sequence[str]) -> tuple[str, str, bool] | None:
    """What ``inspect FILE [--format FORM] [--exit-zero]`` asks for; None for every other command line.

    Programs ask that of many files, and importing click would take a fifth of it.
    """
    from ckptdoctor.cli.output import FORMATS

    file, form, exit_zero = "", "text", False
    rest = iter(words[1:] if words[:1] == ["inspect"] else ())
    for word in rest:
        if word == "--format":
            form = next(rest, "")
        elif word == "--exit-zero":
            exit_zero = True
        elif file or word.startswith("-"):
            return None
        else:
            file = word
    return (file, form, exit_zero) if file and form in FORMATS else None
