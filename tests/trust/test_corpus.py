"""More than 500 malformed, hostile and odd files: the right answer, in bounds, nothing executed.

The readers run in processes of their own, a dozen files each; a process that dies is one failure.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import answer
from benchmarks.guarded import Ended, guarded
from benchmarks.readers import READERS, peer_of
from fixtures.damaged import Case, all_cases

SECONDS, MEMORY = 30, 1 << 29
FACTOR = 8  # memory for a file, in sizes of the file and its neighbours
SPARE = 96 << 20  # what imports and torch's own buffers take
BATCH = 16

# Files that the peer accepts and we refuse, each with the reason.
STRICTER = {
    "zip with bytes behind it": "the directory says where the file ends; something was joined to it",
    "zip with a storage twice": "torch takes the one that a hash table gives",
    "zip with data.pkl twice": "the same",
    "zip with a flipped bit in a weight": "torch checks no checksum",
    "zip with a flipped bit in a bias": "the same",
    "zip with a flipped bit in data.pkl": "the same",
    "zip with overlapping members": "one tensor would be read from another's header",
    "zip with a comment longer than the file": "the file is cut",
    "zip64 with an end record at the start": "the locator points to something else; the file was changed",
    "zip with another name in the local header": "the two directories contradict each other",
    "zip view with too few steps": "sizes and strides contradict each other",
    "legacy view with too few steps": "the same",
    "zip view with nine hundred dimensions": "no model has them; libraries crash on them",
    "legacy view with nine hundred dimensions": "the same",
    "safetensors with a field more": "the format has exactly three",
    "zip whose pickle has a memo of 30 GB": "it would take 30 GB",
    "zip whose pickle has lists in lists": "50,000 levels",
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    case: Case
    path: Path
    size: int
    ours: Ended
    printed: str
    code: int
    theirs: Ended | None


def _one(path: str) -> tuple[Any, ...]:
    """Our reader, the command line, and the peer, on one file; with the memory that ours took."""
    from ckptdoctor.cli import main

    ours = _timed(READERS["ckptdoctor"], path)
    out = io.StringIO()
    code: Any = 0
    with redirect_stdout(out), redirect_stderr(out):
        try:
            main(["inspect", path])
        except SystemExit as stop:
            code = stop.code
    pipe = Path(path).is_fifo()
    theirs = None if pipe else _timed(READERS[peer_of(Path(path))], path)
    return ours, out.getvalue(), code, theirs


def _timed(read: Any, path: str) -> Ended:
    import time

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, start = _status("VmRSS"), time.perf_counter()
    try:
        kind, value = "returned", read(path)
    except BaseException as error:
        kind, value = "raised", ([c.__name__ for c in type(error).__mro__], str(error))
    took = time.perf_counter() - start
    return Ended(kind, value, took, max(0, (_status("VmHWM") - before) * 1024))


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))


def _several(paths: list[str]) -> list[tuple[Any, ...]]:
    warnings.simplefilter("ignore")
    return [_one(path) for path in paths]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("corpus")
    canary, cases, paths = root / "canary", all_cases(), []
    for case in cases:
        (root / case.folder).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            paths.append(case.make(root / case.folder, canary))
    found: dict[str, Made] = {}
    for first in range(0, len(cases), BATCH):
        part = [str(p) for p in paths[first : first + BATCH]]
        ended = guarded(_several, part, seconds=SECONDS, memory=MEMORY)
        rows = ended.value if ended.kind == "returned" else [(ended, "", -1, None)] * len(part)
        for case, path, row in zip(cases[first:], paths[first:], rows, strict=False):
            files = path.iterdir() if path.is_dir() else path.parent.iterdir()
            size = sum(p.stat().st_size for p in files if p.is_file())
            found[case.name] = Made(case, path, size, *row)
    assert not canary.exists(), "something in a file was executed"
    return found


def wrong(made: dict[str, Made], check: Any) -> Iterator[str]:
    for name, row in made.items():
        problem = check(row)
        if problem:
            yield f"{name}: {problem}"


def test_there_are_more_than_500(made: dict[str, Made]) -> None:
    assert len(made) > 500


def test_every_answer_is_the_expected_one(made: dict[str, Made]) -> None:
    def check(row: Made) -> str:
        got = answer(row.ours)
        if got != row.case.answer:
            return f"{got} instead of {row.case.answer}: {row.ours.value}"
        if got == "read" and row.case.keys is not None:
            missing = [
                k for k in row.case.keys if not any(p == k or p.endswith("." + k) for p in row.ours.value)
            ]
            return f"without {missing}" if missing or len(row.ours.value) != len(row.case.keys) else ""
        return ""

    assert not list(wrong(made, check))


def test_every_refusal_names_the_file_and_says_what_it_should(made: dict[str, Made]) -> None:
    from ckptdoctor.keys import printable

    def check(row: Made) -> str:
        if row.case.answer == "read":
            return ""
        text = row.ours.value[1]
        if not text.isprintable():
            return f"control characters in {text!r}"
        if printable(row.path.name) not in text and row.path.parent.name not in text:
            return f"no name of the file in {text!r}"
        return "" if re.search(row.case.says, text) else f"nothing of {row.case.says!r} in {text!r}"

    assert not list(wrong(made, check))


def test_the_command_line_agrees_and_shows_no_traceback(made: dict[str, Made]) -> None:
    def check(row: Made) -> str:
        if "Traceback" in row.printed or row.code not in (0, 1, 2):
            return f"exit {row.code}: {row.printed[-300:]}"
        if "\x1b" in row.printed or "\u202e" in row.printed:
            return "control characters reach the terminal"
        refused = row.case.answer != "read"
        if not refused and row.ours.kind == "returned" and row.code == 2:
            return f"exit 2 for a readable file: {row.printed[-300:]}"
        return "exit 0 for a file that cannot be read" if refused and row.code == 0 and not _late(row) else ""

    assert not list(wrong(made, check))


def _late(row: Made) -> bool:
    """Headers are sound and values are not: `inspect` reads headers, `inspect --deep` and loading read all."""
    return "flipped bit in a" in row.case.name


def test_time_and_memory_are_bounded_by_the_file(made: dict[str, Made]) -> None:
    def check(row: Made) -> str:
        if row.ours.seconds > SECONDS / 2:
            return f"{row.ours.seconds:.1f} s"
        bound = SPARE + FACTOR * row.size
        return f"{row.ours.peak:,} bytes for a file of {row.size:,}" if row.ours.peak > bound else ""

    assert not list(wrong(made, check))


def test_what_torch_and_safetensors_accept_we_read_alike(made: dict[str, Made]) -> None:
    def check(row: Made) -> str:
        if row.theirs is None or row.theirs.kind != "returned":
            return ""
        if row.ours.kind != "returned":
            return "" if row.case.name in STRICTER else f"refused: {row.ours.value[1]}"
        theirs = row.theirs.value
        other = {k: v for k, v in row.ours.value.items() if theirs.get(k, v) != v}
        if other:
            return f"other values: {sorted(other)}"
        unseen = set(theirs) - set(row.ours.value) - {""}
        return (
            f"tensors that we do not list: {sorted(unseen)}" if unseen and row.case.keys is not None else ""
        )

    assert not list(wrong(made, check))


def test_every_file_that_we_refuse_alone_is_listed_with_a_reason(made: dict[str, Made]) -> None:
    alone = {
        name
        for name, row in made.items()
        if row.theirs is not None and row.theirs.kind == "returned" and row.ours.kind == "raised"
    }
    assert alone == set(STRICTER)
