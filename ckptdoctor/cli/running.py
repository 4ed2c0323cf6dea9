"""Runs the commands: every way in which one can end becomes an exit code and, at most, a few words."""

from __future__ import annotations

import os
import sys

import click

from ckptdoctor.errors import CkptDoctorError, IncompatibleError, ProbeError, UndecidedError

FINE, FINDINGS, COULD_NOT = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells expect


def run(group: click.Group, args: list[str]) -> int:
    """The exit code of one command line. Words go to stderr; a traceback only with ``-v`` and for a bug."""
    try:
        code = _invoke(group, args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted. Python would complain again when closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except click.ClickException as error:
        error.show(sys.stderr)
        return COULD_NOT
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return INTERRUPTED
    except CkptDoctorError as error:
        say(f"error: {error}")
        return FINDINGS if isinstance(error, UndecidedError | IncompatibleError | ProbeError) else COULD_NOT
    except (OSError, MemoryError, RecursionError) as error:
        say(f"error: {environment(error)}")
        return COULD_NOT
    except Exception as error:
        return _bug(error, args)


def _invoke(group: click.Group, args: list[str]) -> int:
    # Not group.main(), which turns a closed pipe into exit code 1; but shell completion is in there.
    if "_CKPTDOCTOR_COMPLETE" in os.environ:
        group.main(args, prog_name="ckptdoctor")
    try:
        with group.make_context("ckptdoctor", args) as context:
            code = group.invoke(context)
    except click.exceptions.Exit as done:
        code = done.exit_code
    return code if isinstance(code, int) else FINE


def environment(error: BaseException) -> str:
    """What the machine refused, in words."""
    from ckptdoctor.keys import printable

    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply"
    name = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or str(error)
    return f"{printable(str(name))}: {reason}" if name else str(reason)


def _bug(error: Exception, args: list[str]) -> int:
    from ckptdoctor.keys import printable

    say(
        f"internal error: {type(error).__name__}: {printable(str(error))}\n"
        "This is a bug in ckptdoctor; please report it with this command line"
        + ("." if "-v" in args else " and what the same command prints with -v.")
    )
    if "-v" in args or "--verbose" in args:
        import traceback

        traceback.print_exception(error)
    return COULD_NOT


def say(words: str) -> None:
    """Words for a person, on stderr."""
    # A closed stderr is no reason to end otherwise.
    try:
        print(words, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return
