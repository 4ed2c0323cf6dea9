"""Writing a state dict to a file, completely or not at all.

A new format is one function in one file of this package and one row in :data:`WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable
from ckptdoctor.writers.atomic import check_place, replacing
from ckptdoctor.writers.safetensors_file import write_safetensors
from ckptdoctor.writers.torch_file import write_torch

if TYPE_CHECKING:
    from collections.abc import Mapping

Write = Callable[["Mapping[str, Any]", Path], None]

# name -> (suffixes, function); the name is what `fmt=` takes.
WRITERS: dict[str, tuple[tuple[str, ...], Write]] = {
    "pth": ((".pth", ".pt", ".ckpt", ".bin", ".tar", ".th"), write_torch),
    "safetensors": ((".safetensors",), write_safetensors),
}

__all__ = ["WRITERS", "check_out", "check_place", "replacing", "write_state_dict", "writer_for"]


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


def write_state_dict(
    values: Mapping[str, Any],
    out: Path,
    *,
    fmt: str | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write ``values`` to ``out`` by write, fsync, ``check`` of the new file, rename, fsync.

    Whatever is raised on the way, ``out`` is as it was, and nothing is left beside it.
    Raises :class:`ApplyError`, or what ``check`` raises.
    """
    write = writer_for(out, fmt)
    check_place(out)
    needed = sum(v.numel() * v.element_size() for v in values.values() if hasattr(v, "element_size"))
    with replacing(out, needed) as temporary:
        write(values, temporary)
        if check is not None:
            check(temporary)
