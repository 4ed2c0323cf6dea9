"""Reading checkpoints: `open_checkpoint` finds out what a file is and reads its headers, nothing more.

Nothing in a file is executed or imported, no tensor bytes are read, torch is not needed.
"""

from __future__ import annotations

import gc
import os
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptdoctor.formats.base import Archive, Recipe, StateDict, StorageRef
from ckptdoctor.formats.sniff import foreign, sniff
from ckptdoctor.formats.source import FileSource

if TYPE_CHECKING:
    from ckptdoctor.diagnostics import Diagnostic

__all__ = ["Archive", "Recipe", "StateDict", "StorageRef", "deep_check", "open_checkpoint", "quiet_gc"]


def open_checkpoint(path: str | os.PathLike[str]) -> Archive:
    """Read a checkpoint's headers: a file, a shard index, or a folder that holds one of them.

    The specs of a large file are made when they are asked for.

    Raises UnknownFormatError when it is something else (named), CorruptCheckpointError when it is
    damaged (what and where), ReadError when it cannot be opened. The message says what to do.
    """
    from ckptdoctor.formats.facts import with_facts

    name = os.fspath(path)
    if os.path.isdir(name):
        from ckptdoctor.formats.folders import checkpoint_in

        name = checkpoint_in(name)
    return with_facts(open_file(name))


def deep_check(archive: Archive) -> list[Diagnostic]:
    """Findings that need every byte of the file: bad checksums, NaN and infinity. Needs torch.

    Raises ReadError if the file cannot be read any more.
    """
    from ckptdoctor.formats.deep import check

    return check(archive)


def open_file(path: str, *, shard: bool = False) -> Archive:
    """`open_checkpoint` for a file, not a folder. A ``shard`` is no index itself (it could lead back)."""
    with quiet_gc(), FileSource(path) as source:
        archive = _open(source, shard)
        source.unchanged()
        return replace(archive, stamps={**archive.stamps, path: source.stamp})


class _Quiet:
    _was = False

    def __enter__(self) -> None:
        self._was = gc.isenabled()
        gc.disable()

    def __exit__(self, *error: object) -> None:
        if self._was:
            gc.enable()

    def __del__(self) -> None:  # where Ctrl-C came between
        self.__exit__()


def quiet_gc() -> AbstractContextManager[None]:
    """No garbage collection inside, for work that makes many objects and no garbage; restored after.

    Nor at its end: a generator would make one more object there, and all of them were gone through.
    """
    return _Quiet()


def _open(source: FileSource, shard: bool) -> Archive:
    if source.path.endswith(".distcp"):
        raise foreign(
            source.path,
            "one part of a distributed checkpoint (DCP folder)",
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER checkpoint.pth",
        )
    kind = sniff(source)
    if kind == "zip":
        from ckptdoctor.formats.torch_zip import open_zip

        return open_zip(source)
    if kind == "legacy":
        from ckptdoctor.formats.torch_legacy import open_legacy

        return open_legacy(source)
    if kind == "safetensors":
        from ckptdoctor.formats.safetensors import open_safetensors

        return open_safetensors(source)
    if kind == "tar":
        from ckptdoctor.formats.torch_tar import open_tar

        return open_tar(source)
    if kind == "json":
        from ckptdoctor.formats.sharded import open_index, refuse_index

        return refuse_index(source) if shard else open_index(source)
    from ckptdoctor.formats.plain_pickle import open_pickle

    return open_pickle(source)
