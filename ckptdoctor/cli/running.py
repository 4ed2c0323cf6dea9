"""Runs a click command."""

from __future__ import annotations

import os
import sys

import click

from ckptdoctor.cli.ending import COULD_NOT, FINE, ended


def run(group: click.Group, args: list[str]) -> int:
    """The exit code of one command line, see `ended`."""
    return ended(lambda: _invoke(group, args), args)


def _invoke(group: click.Group, args: list[str]) -> int:
    # Not group.main(), which turns a closed pipe into exit code 1; but shell completion is in there.
    if "_CKPTDOCTOR_COMPLETE" in os.environ:
        group.main(args, prog_name="ckptdoctor")
    try:
        with group.make_context("ckptdoctor", args) as context:
            code = group.invoke(context)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return COULD_NOT
    except click.Abort:
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else FINE
