"""Running the worker: start it, take its events, and end it with everything that it started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

GRACE = 3.0  # seconds beyond the timeout, in which the worker says where it hangs
_TAIL = 64_000  # bytes kept of what the user's code prints
_ROOT = str(Path(__file__).resolve().parents[2])
_START = (
    "import sys; sys.path.insert(0, {root!r}); "
    "from ckptdoctor.targets._worker import main; sys.path.remove({root!r}); main()"
)


@dataclass
class Outcome:
    """What came back from one run of the worker."""

    events: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""  # the end of what the user's code printed
    dump: str = ""  # where the threads were when it hung or crashed, innermost frame first
    returncode: int | None = None  # None: still running when its time was over
    timed_out: bool = False

    @property
    def answered(self) -> bool:
        """Whether the worker came to its own end."""
        return any(e["event"] in ("done", "refused") for e in self.events)

    @property
    def last_stage(self) -> dict[str, Any]:
        """The last thing it began."""
        stages = [e for e in self.events if e["event"] == "stage"]
        return stages[-1] if stages else {"doing": "starting Python"}


def run(request: Mapping[str, Any], timeout: float) -> Outcome:
    """Run one worker; it and its children are gone when this returns or raises."""
    token = secrets.token_hex(8) + " "
    process = subprocess.Popen(
        # -P: the working directory must not shadow the standard library before the user's code runs.
        [sys.executable, "-P", "-u", "-c", _START.format(root=_ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=os.name == "posix",
    )
    outcome = Outcome()
    try:
        _converse(process, {**request, "token": token, "timeout": timeout}, outcome)
    finally:
        _end(process)
    if not outcome.answered and not outcome.timed_out:
        outcome.returncode = process.returncode
    return outcome


def _converse(process: subprocess.Popen[bytes], request: Mapping[str, Any], outcome: Outcome) -> None:
    assert process.stdin and process.stdout and process.stderr
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    tail = bytearray()
    readers = [
        threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True),
        threading.Thread(target=_read_tail, args=(process.stderr, tail), daemon=True),
    ]
    for reader in readers:
        reader.start()
    with contextlib.suppress(OSError), process.stdin:
        process.stdin.write(json.dumps(request).encode())
    start = time.monotonic()
    _take_events(process, lines, outcome, request["token"].encode(), start + request["timeout"] + GRACE)
    outcome.timed_out |= not outcome.answered and time.monotonic() - start >= request["timeout"]
    if not outcome.events or outcome.events[-1]["event"] != "done":
        readers[1].join(0.5)  # what it printed last tells why
    outcome.output = bytes(tail).decode("utf-8", "replace")


def _take_events(
    process: subprocess.Popen[bytes],
    lines: queue.SimpleQueue[bytes | None],
    outcome: Outcome,
    token: bytes,
    deadline: float,
) -> None:
    while not outcome.answered:
        left = deadline - time.monotonic()
        if left <= 0:
            outcome.timed_out = True
            return
        try:
            line = lines.get(timeout=min(left, 0.5))
        except queue.Empty:
            # A child that keeps the pipe open hides the end of the worker itself.
            if _is_dead(process) and lines.empty():
                return
            continue
        if line is None:
            return
        if line.startswith(token):
            outcome.events.append(json.loads(line[len(token) :]))
        else:
            outcome.dump += line.decode("utf-8", "replace")


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            lines.put(line)
    lines.put(None)


def _read_tail(stream: IO[bytes], tail: bytearray) -> None:
    with contextlib.suppress(OSError, ValueError):
        while chunk := os.read(stream.fileno(), 65536):
            tail += chunk
            del tail[:-_TAIL]


def _is_dead(process: subprocess.Popen[bytes]) -> bool:
    if hasattr(os, "waitid"):  # without reaping, so that the process id stays ours until the group is gone
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        # The worker leads its own group; not reaped yet, so the id cannot belong to anyone else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
