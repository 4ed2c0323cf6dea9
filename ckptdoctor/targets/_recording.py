"""In the worker: notes what the user's code reads while it is imported and builds its model."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from ckptdoctor.targets import inputs
from ckptdoctor.targets._paths import is_installed

_UNSURE = {
    "subprocess.Popen": "it starts another program",
    "os.system": "it starts another program",
    "os.exec": "it starts another program",
    "os.posix_spawn": "it starts another program",
    "os.fork": "it starts another process",
    "socket.connect": "it opens a connection",
    "socket.getaddrinfo": "it opens a connection",
    "urllib.Request": "it opens a connection",
    "sqlite3.connect": "it opens a database",
}
_SYSTEM = ("/proc/", "/dev/", "/sys/", "<")
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TOLERANCE = 0.05  # seconds by which clocks of file systems may be behind


class Recorder:
    """Notes paths, names and variables from :meth:`start` on; :meth:`inputs` measures them."""

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.asked: set[str] = set()
        self.listed: set[str] = set()
        self.names: set[str] = set()
        self.environ: set[str] = set()
        self.unsure = ""
        self.on = False
        self.since = 0.0

    def start(self) -> None:
        """Once, after torch was imported and before any code of the user runs."""
        self.since = time.time() - _TOLERANCE
        sys.addaudithook(self._audit)
        sys.meta_path.insert(0, self)
        for name in ("stat", "lstat", "access"):
            setattr(os, name, self._asking(getattr(os, name)))
        _watch_environment(self)
        self.on = True

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Every import asks here first, found or not."""
        self.names.update(name.split("."))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            self._note(self.opened, args[0])
        elif event in ("os.listdir", "os.scandir"):
            if not _called_by_import():
                self._note(self.listed, args[0] if args[0] is not None else ".")
        elif event in _UNSURE:
            self.unsure = self.unsure or _UNSURE[event]

    def _asking(self, function: Any) -> Any:
        def ask(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self.on and not _called_by_import():
                self._note(self.asked, path)
            return function(path, *args, **kwargs)

        return ask

    def _note(self, where: set[str], path: Any) -> None:
        if isinstance(path, int) or path is None:
            return  # a file that is open already
        text = os.path.abspath(os.fsdecode(path))
        if not text.startswith(_SYSTEM) and not is_installed(text) and "__pycache__" not in text:
            where.add(text)

    def inputs(self) -> inputs.Inputs:
        """Measure everything that was noted, modules that were imported from cached bytecode included."""
        self.on = False
        files = self.opened | set(_module_files())
        folders = {os.path.dirname(f) for f in files if f.endswith(".py")}
        roots = {os.path.abspath(p or ".") for p in sys.path} | folders
        roots = {r for r in roots if not is_installed(r) and os.path.isdir(r)}
        newest = max((_changed_at(f) for f in files), default=0.0)
        unsure = self.unsure or ("a file was written while it was read" if newest >= self.since else "")
        names = frozenset(self.names)
        return inputs.Inputs(
            files={f: inputs.file_digest(f) for f in sorted(files)},
            places={p: inputs.place_kind(p) for p in sorted(self.asked - files)},
            folders={p: inputs.listing_digest(p) for p in sorted(self.listed)},
            roots={r: inputs.names_digest(r, names) for r in sorted(roots)},
            names=tuple(sorted(names)),
            environ={n: inputs.environ_digest(n) for n in sorted(self.environ)},
            machine=inputs.machine(),
            unsure=unsure,
        )


def _called_by_import() -> bool:
    # Which files an import finds is measured by name; that it looks through folders says nothing more.
    # One frame up is our own hook, two up is who asked.
    return sys._getframe(2).f_code.co_filename.startswith("<frozen importlib")


def _module_files() -> Iterator[str]:
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and not is_installed(file) and not file.startswith(_OWN):
            yield os.path.abspath(file)


def _changed_at(path: str) -> float:
    try:
        found = os.stat(path)
    except OSError:
        return 0.0
    return max(found.st_mtime, found.st_ctime)


def _watch_environment(recorder: Recorder) -> None:
    kind: Any = type(os.environ)

    class Watched(kind):  # type: ignore[misc]  # its base is known when it runs: nobody else may make one
        def __getitem__(self, key: Any) -> Any:
            if recorder.on:
                recorder.environ.add(os.fsdecode(key))
            return super().__getitem__(key)

        def __iter__(self) -> Iterator[Any]:
            if recorder.on:
                recorder.unsure = recorder.unsure or "it reads the whole environment"
            found: Iterator[Any] = super().__iter__()
            return found

    for environment in (os.environ, getattr(os, "environb", None)):  # there are no bytes on Windows
        if environment is not None:
            environment.__class__ = Watched
