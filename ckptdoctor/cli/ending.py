"""Every way in which a command can end becomes an exit code and, at most, a few words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ckptdoctor.errors import CkptDoctorError, IncompatibleError, ProbeError, UndecidedError

FINE, FINDINGS, COULD_NOT = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells expect


def ended(work: Callable[[], int], args: list[str]) -> int:
    """The exit code of one command line. Words go to stderr; a traceback only with ``-v`` and for a bug."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted. Python would complain again when closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except KeyboardInterrupt:
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
