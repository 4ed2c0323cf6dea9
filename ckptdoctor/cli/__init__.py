"""The command line: thin commands over `ckptdoctor.api`, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ckptdoctor import __version__
from ckptdoctor.cli.contract import check, files, lock, migrate, release
from ckptdoctor.cli.examining import diagnose, plan
from ckptdoctor.cli.looking import diff, explain, inspect
from ckptdoctor.cli.repairing import apply, repair
from ckptdoctor.cli.running import run
from ckptdoctor.cli.training import extract, lint, strip


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 loads strictly as it is, or done; 1 findings or open questions; 2 could not check.",
)
@click.version_option(__version__, "--version", "-V", message="ckptdoctor %(version)s")
def group() -> None:
    """Why does this PyTorch checkpoint not load, and what repairs it, provably?

    MODEL is model.py, model.py:factory_or_class, package.module:name, a reference checkpoint or a .tree file.
    Nothing in a checkpoint is ever executed.
    """


for command in (
    *(inspect, diagnose, plan, apply, repair, diff, explain),
    *(lint, strip, extract),
    *(lock, check, migrate, release, files),
):
    group.add_command(command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 fine, 1 findings, 2 could not check."""
    sys.exit(run(group, list(sys.argv[1:] if args is None else args)))
