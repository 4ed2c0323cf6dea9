"""Every file of the corpus through our reader and its peer, in bounded processes.

    python benchmarks/corpus.py [NAME ...]

A peer's answer is right when it refuses what is damaged or foreign, and reads what is sound with the
right keys.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has one thread; torch must not wait for others

from benchmarks.guarded import Ended, guarded
from benchmarks.readers import READERS, peer_of
from fixtures.damaged import Case, all_cases


@dataclass(frozen=True)
class Row:
    """One file: what we said, what the peer said."""

    case: Case
    path: Path
    size: int
    ours: Ended
    peer: str
    theirs: Ended
    executed: bool


def answer(ended: Ended) -> str:
    """The class of an answer of ours."""
    if ended.kind == "returned":
        return "read"
    if ended.kind == "died":
        return f"died ({ended.value})"
    names = ended.value[0]
    return (
        "foreign"
        if "UnknownFormatError" in names
        else "corrupt"
        if "ReadError" in names
        else f"crashed ({names[0]})"
    )


def right(case: Case, ended: Ended) -> bool:
    """Whether a peer's answer is right; the class of its error does not matter."""
    if ended.kind == "died":
        return False
    if case.answer != "read":
        return ended.kind == "raised"
    if ended.kind != "returned":
        return False
    if case.keys is None:
        return True
    return all(any(path == key or path.endswith("." + key) for path in ended.value) for key in case.keys)


def rows(cases: Iterable[Case], folder: Path) -> Iterable[Row]:
    """Make each file, read it twice."""
    canary = folder / "canary"
    for case in cases:
        (folder / case.folder).mkdir()
        path = case.make(folder / case.folder, canary)
        mine = guarded(READERS["ckptdoctor"], str(path), seconds=5)
        executed = canary.exists()
        peer = peer_of(path)
        theirs = guarded(READERS[peer], str(path), seconds=5)
        size = sum(p.stat().st_size for p in (folder / case.folder).glob("*") if p.is_file())
        yield Row(case, path, size, mine, peer, theirs, executed)
        canary.unlink(missing_ok=True)


def main() -> int:
    """Print the table and the differences."""
    warnings.simplefilter("ignore")
    wanted = [w for w in sys.argv[1:] if w != "-v"]
    cases = [c for c in all_cases() if not wanted or any(w in c.name for w in wanted)]
    with tempfile.TemporaryDirectory() as folder:
        found = list(rows(cases, Path(folder)))
    mine = sum(answer(r.ours) == r.case.answer for r in found)
    print(f"{len(found)} files: ckptdoctor gives the right answer on {mine}")
    for peer in ("torch", "safetensors"):
        asked = [r for r in found if r.peer == peer]
        good = sum(right(r.case, r.theirs) for r in asked)
        same = sum(answer(r.ours) == r.case.answer for r in asked)
        print(f"  {peer}: right on {good} of its {len(asked)}; ckptdoctor on {same} of the same")
    print(f"  peers together: right on {sum(right(r.case, r.theirs) for r in found)} of {len(found)}")
    slowest, most = max(r.ours.seconds for r in found), max(r.ours.peak for r in found) / 1e6
    print(f"  slowest {slowest:.2f} s, most memory {most:.0f} MB")
    kinds = Counter(
        ("reads" if r.theirs.kind == "returned" else r.theirs.kind, r.case.answer)
        for r in found
        if not right(r.case, r.theirs)
    )
    print(
        "  peers' wrong answers:",
        ", ".join(f"{n} {what} ({want})" for (what, want), n in kinds.most_common()),
    )
    for row in found:
        if answer(row.ours) != row.case.answer or row.executed:
            print(f"  ckptdoctor, {row.case.name}: {answer(row.ours)} instead of {row.case.answer}")
    if "-v" in sys.argv:
        for row in found:
            if not right(row.case, row.theirs):
                print(f"  {row.peer}, {row.case.name} ({row.case.answer}): {str(row.theirs.value)[:100]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
