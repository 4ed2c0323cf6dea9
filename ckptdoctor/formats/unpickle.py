"""Pickles read with the C unpickler, every name in them an inert stand-in."""

from __future__ import annotations

import pickle
import re
from typing import Any, Protocol

from ckptdoctor.errors import ReadError
from ckptdoctor.formats.inert import Inert, StorageRecord, StorageType, StorageView, TensorRows, stand_in
from ckptdoctor.formats.pickle_rows import read_rows
from ckptdoctor.formats.pickle_scan import Scan
from ckptdoctor.formats.rebuild import STORAGE_DTYPES, resolve
from ckptdoctor.formats.source import Window, corrupt
from ckptdoctor.formats.words import show
from ckptdoctor.trees import DTYPE_SIZES

MOST_GLOBALS = 20_000
FEW = 24  # tensors that are not worth to be read by rows
MOST_ELEMENTS = 2**60
ADVICE = "download or copy the file again; if that does not help, save it again where it was made"

# A protocol-0 pickle writes a persistent id as its repr; torch.load cannot read that, we can.
_TEXT_ID = (
    r"\('storage', <class 'torch[\w.]*\.(\w+)'>, '([^'\\]*)', '([^'\\]*)', (\d+)"
    r"(?:, (None|\('[^'\\]*', \d+, \d+\)))?\)"
)
_TEXT_CLASS = r"\('module', <class '([\w.<>]+)\.(\w+)'>, "


class Names:
    """Every global that the pickles of one file name, and what it became."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, str], Any] = {}

    def get(self, module: str, name: str) -> Any:
        """The stand-in of ``module.name``, the same one every time."""
        found = self.made.get((module, name))
        if found is None:
            if len(self.made) >= MOST_GLOBALS:
                raise pickle.UnpicklingError(f"it names more than {MOST_GLOBALS} classes")
            found = resolve(module, name)
            if found is None:
                found = stand_in(module, name)
            self.made[module, name] = found
        return found

    def listed(self) -> tuple[str, ...]:
        """``module.name`` of all, sorted."""
        return tuple(sorted(f"{m}.{n}" for m, n in self.made))


class Storages:
    """The storages that persistent ids name, in order of appearance."""

    def __init__(self, names: Names | None = None) -> None:
        self.names = names or Names()
        self.by_key: dict[str, StorageRecord] = {}
        self.views: dict[str, StorageRecord] = {}
        self.rows: list[TensorRows] = []  # their storages are not in `by_key`, unless they stood alone

    def everything(self) -> dict[str, StorageRecord]:
        """All storages, those in rows first."""
        found: dict[str, StorageRecord] = {}
        for rows in self.rows:
            for record in rows.records().values():
                found.setdefault(record.storage.key, record.storage)
        return found | self.by_key

    def columns(self) -> tuple[list[str], list[tuple[str, str]], list[int], list[int]]:
        """Keys; dtypes with devices, of each kind; kinds; bytes: of all, as the file has them.

        State dicts come first.
        """
        keys: list[str] = []
        tags: list[tuple[str, str]] = []
        kinds: list[int] = []
        nbytes: list[int] = []
        for rows in self.rows:
            of = [tensor.storage for tensor in rows.tensors]
            keys += rows.storages
            kinds += map(len(tags).__add__, rows.kinds) if tags else rows.kinds
            tags += [(s.dtype, s.device) for s in of]
            nbytes += map([s.nbytes for s in of].__getitem__, rows.kinds)
        known = set(keys)
        alone = [record for key, record in self.by_key.items() if key not in known]
        if len(known) != len(keys):  # two state dicts have some in common
            keys, tags, kinds, nbytes, alone = [], [], [], [], list(self.everything().values())
        keys += [s.key for s in alone]
        kinds += range(len(tags), len(tags) + len(alone))
        tags += [(s.dtype, s.device) for s in alone]
        nbytes += [s.nbytes for s in alone]
        return keys, tags, kinds, nbytes

    def resolve(self, pid: Any) -> Any:
        """``("storage", type, key, location, numel[, view])`` or ``("module", class, file, source)``."""
        if type(pid) is tuple and len(pid) == 5 and pid[0] == "storage":  # nearly all
            _, kind, key, device, numel = pid
            if type(key) is str and type(device) is str and type(kind) is StorageType and type(numel) is int:
                record = self.by_key.get(key)
                if record is None and 0 <= numel < MOST_ELEMENTS:
                    record = self.by_key[key] = StorageRecord(key, kind.dtype, device, numel)
                if record is not None and numel == record.numel:
                    return record
        if type(pid) is tuple and 5 <= len(pid) <= 6 and (pid[0] == "storage" or text(pid[0]) == "storage"):
            return self.get(*pid[1:])
        if isinstance(pid, tuple) and len(pid) == 4 and text(pid[0]) == "module":
            return pid[1]
        if isinstance(pid, str) and (found := re.fullmatch(_TEXT_ID, pid)):
            return self._text_id(*found.groups())
        if isinstance(pid, str) and (found := re.match(_TEXT_CLASS, pid)):
            return self.names.get(found[1], found[2])
        raise pickle.UnpicklingError("it refers to something outside the file that is no storage")

    def _text_id(self, kind: str, key: str, device: str, numel: str, view: str | None) -> StorageRecord:
        if kind not in STORAGE_DTYPES or (view and view != "None"):
            raise pickle.UnpicklingError(f"unknown storage type {kind!r}")
        return self.get(StorageType(kind, STORAGE_DTYPES[kind]), key, device, int(numel))

    def get(self, kind: Any, key: Any, device: Any, numel: Any, view: Any = None) -> StorageRecord:
        """The record of one persistent id; raises UnpicklingError where it is malformed."""
        if type(key) is not str or type(device) is not str:
            key, device = text(key), text(device)
        if type(kind) is not StorageType or type(numel) is not int or not 0 <= numel < MOST_ELEMENTS:
            raise _bad_storage(key, kind)
        record = self.by_key.get(key)
        if record is None:
            record = self.by_key[key] = StorageRecord(key, kind.dtype, device, numel)
        elif numel != record.numel:  # named again as another type; torch keeps the first type
            record.nbytes = max(record.nbytes, numel * DTYPE_SIZES[kind.dtype or "uint8"])
        return record if view is None else self._view(record, view)

    def _view(self, root: StorageRecord, view: Any) -> StorageRecord:
        if not (isinstance(view, tuple) and len(view) == 3):
            raise pickle.UnpicklingError(f"malformed view of storage {root.key!r}")
        key, offset, numel = text(view[0]), view[1], view[2]
        if type(offset) is not int or type(numel) is not int or offset < 0 or numel < 0:
            raise pickle.UnpicklingError(f"malformed view of storage {root.key!r}")
        if offset + numel > root.numel:
            raise pickle.UnpicklingError(f"view {key!r} ends outside storage {root.key!r}")
        made = self.views.get(key)
        if made is None:
            made = self.views[key] = StorageView(key, root, offset, numel)
        return made


def _bad_storage(key: str, kind: Any) -> pickle.UnpicklingError:
    if isinstance(kind, StorageType):
        return pickle.UnpicklingError(f"storage {key!r} has a size that cannot be")
    named = isinstance(kind, type) and issubclass(kind, Inert)
    name = f"{kind.module}.{kind.name}" if named else "?"
    return pickle.UnpicklingError(f"storage {key!r} is of the unknown type {name!r}")


def text(value: Any) -> str:
    """A key or location tag as a string; raises UnpicklingError for anything that is none."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, int) and not isinstance(value, bool):  # very old files: the address itself
        return str(value) if value.bit_length() <= 64 else "?"
    if not isinstance(value, str):
        raise pickle.UnpicklingError("malformed storage id")
    return value


class SafeUnpickler(pickle.Unpickler):
    """`find_class` gives stand-ins, `persistent_load` gives storage records; nothing else is reachable."""

    def __init__(self, window: Window, names: Names, outside: Outside, encoding: str) -> None:
        self.names = names
        # As an attribute it is called without one more call; whatever the format means by it.
        self.persistent_load = outside.resolve  # type: ignore[method-assign]  # what is meant
        super().__init__(window, fix_imports=False, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        """Never the object itself."""
        return self.names.get(module, name)


class Outside(Protocol):
    """What persistent ids refer to."""

    def resolve(self, pid: Any) -> Any:
        """The record for one id; raises UnpicklingError for one that is malformed."""


def unpickle(
    window: Window,
    names: Names,
    outside: Outside,
    *,
    path: str,
    what: str,
    memo: dict[int, Any] | None = None,
) -> Any:
    """The object of the pickle at `window`, which is moved behind it; `memo` gets what it remembers.

    Raises CorruptCheckpointError for anything that is no well-formed pickle.
    """
    start = window.position
    scan = _scan(window, path, what)
    if type(outside) is Storages and memo is None and sum(len(run.kinds) for _, run in scan.runs) >= FEW:
        whole = _by_rows(scan, window, names, outside)
        if whole is not None:
            window.position = scan.end
            return whole[0]
    for encoding in ("utf-8", "latin1"):  # as torch.load; latin1 for what Python 2 wrote
        window.position = start
        try:
            unpickler = SafeUnpickler(window, names, outside, encoding)
            root = unpickler.load()
            if memo is not None:
                memo.update(unpickler.memo.copy())
            return root
        except ReadError:
            raise
        except UnicodeDecodeError as error:
            if encoding == "latin1":
                raise corrupt(path, f"{what} holds text that is not UTF-8 ({error.reason})", ADVICE) from None
        except (KeyboardInterrupt, SystemExit):
            raise
        except MemoryError:
            raise corrupt(path, f"{what} asks for more memory than there is", ADVICE) from None
        except EOFError:
            raise corrupt(path, f"{what} ends in the middle", ADVICE) from None
        except Exception as error:
            raise corrupt(path, f"{what} is no well-formed pickle ({_reason(error)})", ADVICE) from None
    raise AssertionError


def _by_rows(scan: Scan, window: Window, names: Names, outside: Storages) -> tuple[Any] | None:
    """The object, with `TensorRows` in it; None where the pickle has to be unpickled as it is."""
    own_names, own = Names(), Storages()
    own_names.made.update(names.made)
    whole = read_rows(scan, window, lambda short: SafeUnpickler(short, own_names, own, "utf-8").load())
    if whole is None:
        return None
    for key in whole.ours:
        own.by_key.pop(key, None)
    storages = set(whole.storages)
    if len(storages) != len(whole.storages) or not storages.isdisjoint([*own.by_key, *outside.by_key]):
        return None  # tensors that share memory
    names.made.update(own_names.made)
    outside.by_key.update(own.by_key)
    outside.by_key.update((record.key, record) for record in whole.alone)
    outside.views.update(own.views)
    outside.rows += whole.rows
    return (whole.root,)


def _scan(window: Window, path: str, what: str) -> Scan:
    """Refuse what the unpickler would not survive; see `pickle_scan`."""
    try:
        scan = Scan(window)
        scan.run()
        return scan
    except EOFError:
        raise corrupt(path, f"{what} ends in the middle", ADVICE) from None
    except pickle.UnpicklingError as error:
        raise corrupt(path, f"{what} is no well-formed pickle ({error})", ADVICE) from None


def _reason(error: Exception) -> str:
    return show(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, 160)
