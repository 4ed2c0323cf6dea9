"""Writing a state dict to a file, completely or not at all.

A new format is one function in one file of this package and one row in :data:`WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ckptdoctor.errors import ApplyError
from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.spans import Span
from ckptdoctor.keys import printable
from ckptdoctor.writers.atomic import check_place, check_space, replacing, sync
from ckptdoctor.writers.leftovers import withdraw_shards
from ckptdoctor.writers.pieces import Contents, Piece
from ckptdoctor.writers.safetensors_file import write_safetensors
from ckptdoctor.writers.shards import index_of, index_text, names, size_of, split
from ckptdoctor.writers.stream import OnBytes
from ckptdoctor.writers.torch_file import write_torch
from ckptdoctor.writers.whole import write_whole

Check = Callable[[Path, Contents], None]  # a new file and what should be in it
Write = Callable[[Contents, Path, Files, OnBytes | None], None]

# name -> (suffixes, function); the name is what `fmt=` takes.
WRITERS: dict[str, tuple[tuple[str, ...], Write]] = {
    "pth": ((".pth", ".pt", ".ckpt", ".bin", ".tar", ".th"), write_torch),
    "safetensors": ((".safetensors",), write_safetensors),
}

__all__ = [
    "WRITERS",
    "Contents",
    "Piece",
    "Span",
    "check_envelope",
    "check_out",
    "check_place",
    "replacing",
    "size_of",
    "write_contents",
    "write_state_dict",
    "writer_for",
]


def writer_for(out: Path, fmt: str | None = None) -> Write:
    """The writer named ``fmt``, or the one for the suffix. Raises :class:`ApplyError`."""
    if fmt is not None:
        if fmt not in WRITERS:
            raise ApplyError(f"cannot write format {printable(fmt)!r}; known are {', '.join(WRITERS)}")
        return WRITERS[fmt][1]
    for suffixes, write in WRITERS.values():
        if out.suffix.lower() in suffixes:
            return write
    known = ", ".join(s for suffixes, _ in WRITERS.values() for s in suffixes)
    raise ApplyError(
        f"`{printable(str(out))}`: the suffix does not say which format to write; use one of {known}"
    )


def check_out(out: Path, fmt: str | None = None) -> None:
    """Whether a file can be written there, before any work is done. Raises :class:`ApplyError`."""
    writer_for(out, fmt)
    check_place(out)


def check_envelope(out: Path, fmt: str | None, sharded: bool, probed: bool) -> None:
    """Whether an envelope can be kept in what is written there. Raises :class:`ApplyError`."""
    reason = ""
    if writer_for(out, fmt) is not write_torch:
        reason = ".safetensors holds tensors only; name a .pth file"
    elif sharded:
        reason = "shards hold tensors only; leave out the largest size of a shard"
    elif probed:
        reason = "a probe runs on a file of weights alone; leave out the probe"
    if reason:
        raise ApplyError(f"the envelope cannot be kept: {reason}, or write the weights alone")


def write_state_dict(
    values: Mapping[str, Any], out: Path, *, check: Callable[[Path], None] | None = None
) -> None:
    """Write values that are in memory, in the format of the suffix; see :func:`whole.write_whole`."""
    write_whole(values, out, safetensors=writer_for(out) is write_safetensors, check=check)


def write_contents(
    contents: Contents,
    out: Path,
    files: Files,
    *,
    fmt: str | None = None,
    max_shard_size: int | None = None,
    check: Check | None = None,
    on_bytes: OnBytes | None = None,
) -> Path:
    """Write to ``out`` by write, fsync, ``check`` of the new file, rename, fsync; what was written.

    More bytes than ``max_shard_size`` become several files, and the index of them is returned. ``files``
    are the sources of what is copied. Whatever is raised on the way, ``out`` is as it was, and nothing is
    left beside it. Raises :class:`ApplyError`, ReadError, or what ``check`` raises.
    """
    write = writer_for(out, fmt)
    check_place(out)
    parts = split(contents, max_shard_size) if max_shard_size and not contents.objects else [contents]
    if len(parts) > 1:
        return _write_shards(parts, out, files, write, check, on_bytes)
    with replacing(out, contents.nbytes) as temporary:
        _write_one(contents, temporary, files, write, check, on_bytes)
    return out


def _write_one(
    contents: Contents,
    path: Path,
    files: Files,
    write: Write,
    check: Check | None,
    on_bytes: OnBytes | None,
) -> None:
    write(contents, path, files, on_bytes)
    files.unchanged()
    if check is not None:
        check(path, contents)


def _write_shards(
    parts: list[Contents],
    out: Path,
    files: Files,
    write: Write,
    check: Check | None,
    on_bytes: OnBytes | None,
) -> Path:
    """All or none, the index last; what a killed run had put in place of them is removed first."""
    withdraw_shards(out, index_of(out))
    index, shards = names(out, len(parts))
    check_space(out.parent, sum(part.nbytes for part in parts))
    made: dict[Path, int] = {}
    with ExitStack() as stack:
        stack.push(lambda kind, error, trace: _take_back(made, index) if error is not None else None)
        index_file = stack.enter_context(replacing(index))  # entered first, so renamed last
        for path, part in zip(shards, parts, strict=True):
            temporary = stack.enter_context(replacing(path))
            _write_one(part, temporary, files, write, check, on_bytes)
            made[path] = temporary.stat().st_ino
        index_file.write_text(index_text(shards, parts), encoding="utf-8")
        sync(index_file)  # before the first shard takes its place: `withdraw_shards` needs it
    return index


def _take_back(made: Mapping[Path, int], index: Path) -> None:
    """Remove the shards that are in place already, when a later one could not be."""
    for path, inode in made.items() if not index.exists() else ():
        with suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()
