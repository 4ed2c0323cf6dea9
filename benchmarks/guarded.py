"""A function in a process of its own, with bounds on time and memory. For files that may be hostile."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How it ended: ``returned`` a value, ``raised`` (class names and text), or ``died`` of a signal."""

    kind: str
    value: Any
    seconds: float = 0.0
    peak: int = 0  # bytes of memory beyond those at the start


def guarded(function: Callable[..., Any], *args: Any, seconds: int = 20, memory: int = 1 << 29) -> Ended:
    """Run it in a fork that may take ``memory`` bytes of address space more and ``seconds`` of time."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        try:
            _run(send, function, args, seconds, memory)
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if not data:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Ended("died", signal.Signals(number).name if number else "without a word")
    ended: Ended = pickle.loads(data)  # made below, by us
    return ended


def _run(send: int, function: Callable[..., Any], args: tuple[Any, ...], seconds: int, memory: int) -> None:
    size = _kilobytes("VmSize") * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds))
    signal.alarm(3 * seconds)  # a read that never ends takes no processor time
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before, start = _kilobytes("VmRSS"), time.perf_counter()
    try:
        kind, value = "returned", function(*args)
    except BaseException as error:
        bases = [c.__name__ for c in type(error).__mro__]
        kind, value = "raised", (bases, str(error), traceback.format_exc())
    took, peak = time.perf_counter() - start, (_kilobytes("VmHWM") - before) * 1024
    with os.fdopen(send, "wb") as pipe:
        pickle.dump(Ended(kind, value, took, max(peak, 0)), pipe)


def _kilobytes(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))
