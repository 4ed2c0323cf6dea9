"""``--trace``: the matching engine's hooks, written as lines on stderr while it works."""

from __future__ import annotations

import sys
from typing import Any

from ckptdoctor.keys import printable


class Trace:
    """Answers every hook of the engine's reporter with one line: its name and what it was told."""

    def __getattr__(self, hook: str) -> Any:
        if hook.startswith("__"):
            raise AttributeError(hook)

        def tell(*args: object, **named: object) -> None:
            words = [_words(a) for a in args] + [f"{k}={_words(v)}" for k, v in named.items()]
            print(f"trace: {hook.replace('_', ' ')}: {', '.join(words)}", file=sys.stderr)

        return tell


def _words(value: object) -> str:
    return printable(str(value))
