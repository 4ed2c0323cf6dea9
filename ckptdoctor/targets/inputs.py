"""Everything that building a model has read, so that a later check can tell that nothing has changed.

Measured twice by the same functions: in the process that builds (`_recording`), and later without torch. A
record can only be right or useless: what cannot be measured again (a connection, another program, the whole
environment) makes it ``unsure``, and then it is not kept. Installed packages count by name, version and
time of installation; the clock and random numbers do not count at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_PACKAGE_MARKS = (".dist-info", ".egg-info", ".egg-link", ".pth")


@dataclass(frozen=True)
class Inputs:
    """What was read: contents of ``files``, what is at ``places`` (file, folder, nothing), listings of
    ``folders``, which of the imported ``names`` are in the ``roots`` of imports, environment variables.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    roots: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    unsure: str = ""  # why this record proves nothing

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Inputs:
        """The inverse of :meth:`to_dict`."""
        return Inputs(**{**data, "names": tuple(data["names"])})

    def changed(self) -> str:
        """The first thing that is not as it was, in words; ``""`` when nothing has changed."""
        if self.unsure:
            return self.unsure
        if self.machine != machine():
            return "Python or an installed package"
        names = frozenset(self.names)
        checks = (
            (self.files, file_digest),
            (self.places, place_kind),
            (self.folders, listing_digest),
            (self.roots, lambda root: names_digest(root, names)),
            (self.environ, environ_digest),
        )
        for recorded, measure in checks:
            for name, value in recorded.items():
                if measure(name) != value:
                    return name
        return ""


def machine() -> str:
    """Python, what is installed beside it, and whether there is a GPU; models may depend on any of them."""
    gpu = any(name.startswith("nvidia") for name in _list("/dev"))
    rows = [sys.version, platform.machine(), sys.platform, str(gpu)]
    for folder in sorted({os.path.realpath(p) for p in sys.path if _is_site(p)}):
        rows += (_installed(folder, name) for name in sorted(_list(folder)) if name.endswith(_PACKAGE_MARKS))
    return _digest("\n".join(rows).encode())


def _is_site(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path


def _installed(folder: str, name: str) -> str:
    try:
        return f"{name} {os.stat(os.path.join(folder, name)).st_mtime_ns}"
    except OSError:
        return name


def file_digest(path: str) -> str:
    """Of the content; what cannot be read has the digest of its absence."""
    try:
        return _digest(Path(path).read_bytes())
    except OSError as error:
        return type(error).__name__


def place_kind(path: str) -> str:
    """``file``, ``folder`` or ``nothing``."""
    if os.path.isdir(path):
        return "folder"
    return "file" if os.path.exists(path) else "nothing"


def listing_digest(path: str) -> str:
    """Of the names in a folder."""
    return _digest("\0".join(sorted(_list(path))).encode("utf-8", "surrogateescape"))


def names_digest(root: str, names: Iterable[str]) -> str:
    """Of what a folder offers to ``import`` under these names."""
    wanted = frozenset(names)
    offered = sorted(
        n for n in _list(root) if n.partition(".")[0] in wanted and not n.startswith("__pycache")
    )
    return _digest("\0".join(offered).encode("utf-8", "surrogateescape"))


def environ_digest(name: str) -> str:
    """Of a variable's value; values themselves may be secret and are never kept."""
    value = os.environ.get(name)
    return "unset" if value is None else _digest(f"{name}={value}".encode("utf-8", "surrogateescape"))


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
