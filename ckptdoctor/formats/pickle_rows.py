"""A pickle with many tensors, read with all of one kind at once.

`pickle_scan` finds runs of keys and tensors that ``torch.save`` wrote one like the other. Here each run is
replaced by one tensor of each kind, the rest is unpickled as ever, and what comes out stands for the whole
run. Whatever is not as simple as a state dict of a usual checkpoint is left to the unpickler alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ckptdoctor.formats.inert import StorageRecord, TensorRecord, TensorRows
from ckptdoctor.formats.pickle_records import Kind, Run
from ckptdoctor.formats.pickle_scan import Scan
from ckptdoctor.formats.source import Window, window_of_bytes
from ckptdoctor.formats.summaries import is_optimizer

DEEPEST = 4  # dicts in dicts in which state dicts are looked for

Load = Callable[[Window], Any]  # the unpickled object, and no error that matters


class Whole(NamedTuple):
    """A pickle that was read by rows: its object, and what is in it by rows."""

    root: Any
    rows: list[TensorRows]
    storages: list[str]  # the keys of the storages of runs
    ours: set[str]  # the keys of storages that are in no file
    alone: list[StorageRecord]  # those of runs whose tensors were made one by one after all


def read_rows(scan: Scan, window: Window, load: Load) -> Whole | None:
    """The pickle at `window` by rows; None where it has no runs or is not a plain one.

    ``load`` unpickles another window.
    """
    # All of them, short ones too: what is left would make the unpickler's memo as large as the file's.
    parts = (_part(at, run, scan.records.kinds) for at, run in scan.runs)
    runs = [part for part in parts if part is not None]
    if not runs:
        return None
    mark = f"\0{os.urandom(12).hex()}:"
    try:
        holder = [load(window_of_bytes(_shortened(scan, window, runs, mark)))]
    except Exception:
        return None  # the unpickler will say what is wrong with it, if anything is
    join = _Join(runs, mark)
    if not join.run(holder):
        return None
    ours = {_name(mark, r, i) for r, run in enumerate(runs) for i in run.kinds}
    return Whole(holder[0], join.made, [name for run in runs for name in run.storages], ours, join.alone)


class _Part(NamedTuple):
    """A run, where it is in the file, with its keys as texts and those kinds that it has."""

    start: int
    end: int
    keys: list[str]
    storages: list[str]
    first: list[int]
    kinds: dict[int, Kind]


def _part(at: int, run: Run, kinds: list[Kind]) -> _Part | None:
    """None where it is better left to the unpickler."""
    if run.keys is None or run.storages is None:
        return None
    few = {i: kinds[i] for i in set(run.kinds)}
    return _Part(at, at + run.length, run.keys, run.storages, run.kinds, few)


def _name(mark: str, run: int, row: int) -> str:
    return f"{mark}{run}:{row}"


def _shortened(scan: Scan, window: Window, runs: list[_Part], mark: str) -> bytes:
    """The pickle with one entry for each run: a tuple of one tensor of each kind, over storages of ours."""
    made, at = [], window.position
    for r, run in enumerate(runs):
        made.append(window.read_at(at, run.start - at))
        made.append(_text(f"{mark}{r}") + b"(")
        for i, kind in run.kinds.items():
            made += (kind.before, _text(_name(mark, r, i)), kind.behind)
        made.append(b"t")
        at = run.end
    made.append(window.read_at(at, scan.end - at))
    return b"".join(made)


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


class _Join:
    """Puts `TensorRows` in the place of the dicts that have runs in them."""

    def __init__(self, runs: list[_Part], mark: str) -> None:
        self.runs = {f"{mark}{r}": run for r, run in enumerate(runs)}
        self.made: list[TensorRows] = []
        self.alone: list[StorageRecord] = []

    def run(self, holder: list[Any]) -> bool:
        """Do that in ``holder[0]``; False where a run is anywhere else than in a dict of tensors."""
        found: list[tuple[Any, Any, bool]] = []
        self._find(holder, 0, found, 0, False)
        left = set(self.runs)
        alone = _holders([{}], 0)
        for parent, key, dicts in found:
            tensors = parent[key]
            singles = [name for name in tensors if name not in self.runs]
            if any(_holders(tensors, name) != alone for name in singles):
                return False  # one tensor in several places stays one
            del tensors
            if _holders(parent, key) != alone:
                return False  # somebody else holds the dict, too, and would go on to
            rows = self._rows(parent[key])
            if rows is None:
                return False
            left -= parent[key].keys()
            if dicts:
                self._fill(parent[key], rows)
            else:
                self.made.append(rows)
                parent[key] = rows
        return not left

    def _find(
        self, parent: Any, key: Any, found: list[tuple[Any, Any, bool]], depth: int, dicts: bool
    ) -> None:
        """All dicts with runs, and whether they are to stay dicts, since an optimizer holds them."""
        node = parent[key]
        if isinstance(node, dict):
            if not self.runs.keys().isdisjoint(node):
                found.append((parent, key, dicts))
            elif depth < DEEPEST:
                dicts = dicts or is_optimizer(node)
                for name in node:
                    self._find(node, name, found, depth + 1, dicts)

    def _fill(self, tensors: dict[Any, Any], rows: TensorRows) -> None:
        """The dict itself, with what the rows say."""
        tensors.clear()
        tensors.update(rows.records())
        self.alone += [record.storage for record in tensors.values()]

    def _rows(self, tensors: dict[Any, Any]) -> TensorRows | None:
        rows = TensorRows(getattr(tensors, "state", None))
        for key, value in tensors.items():
            if type(key) is not str:
                return None
            run = self.runs.get(key)
            if run is None:
                rows.keys.append(key)
                kinds, first = {0: value}, [0]
                rows.storages.append(value.storage.key if _is_plain(value) else "")
            else:
                kinds, first = dict(zip(run.kinds, value, strict=True)), run.first
                rows.keys += run.keys
                rows.storages += run.storages
            if not all(map(_is_plain, kinds.values())):
                return None
            numbers = {row: len(rows.tensors) + n for n, row in enumerate(kinds)}
            rows.kinds += map(numbers.__getitem__, first)
            rows.tensors += kinds.values()
        return rows if len(set(rows.keys)) == len(rows.keys) else None


def _holders(parent: Any, key: Any) -> int:
    value = parent[key]
    return sys.getrefcount(value)


def _is_plain(value: Any) -> bool:
    return type(value) is TensorRecord and value.more is None and type(value.storage) is StorageRecord
