"""A file appears at its path complete, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ckptdoctor.errors import ApplyError, CkptDoctorError
from ckptdoctor.keys import printable
from ckptdoctor.writers.leftovers import sweep, unfinished

MARGIN = 1 << 20  # bytes kept free beyond the tensors: keys, headers, padding


def check_place(out: Path) -> None:
    """Raise :class:`ApplyError` unless ``out`` names a file that can be created or replaced."""
    shown = printable(str(out))
    folder = _real(out).parent
    if out.is_dir():
        raise ApplyError(f"`{shown}` is a folder; name the file to write")
    if not folder.exists():
        raise ApplyError(f"`{printable(str(folder))}` does not exist; make it first: mkdir -p")
    if not folder.is_dir():
        raise ApplyError(f"`{printable(str(folder))}` is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ApplyError(f"`{printable(str(folder))}` cannot be written to; choose another folder")
    if out.exists() and not out.is_file():
        raise ApplyError(f"`{shown}` is no regular file")


@contextmanager
def replacing(out: Path, needed: int = 0) -> Iterator[Path]:
    """Yield a new, empty file beside ``out``; when the block ends well, it takes the place of ``out``.

    The file is flushed to disk before the rename and the folder after it. On any exception, and on
    SIGINT, SIGTERM and SIGHUP, it is removed and ``out`` is untouched; what SIGKILL leaves is removed by
    the next run. ``needed`` bytes must be free.
    Raises :class:`ApplyError`.
    """
    final = _real(out)
    sweep(final)  # before the space is counted
    check_space(final.parent, needed)
    temporary = unfinished(final)
    try:
        with _signals_raise():
            mode = final.stat().st_mode & 0o777 if final.exists() else 0o666
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            mode = temporary.stat().st_mode & 0o777  # what the umask left of it
            yield temporary
            temporary.chmod(mode)  # a library may have put its own file there
            sync(temporary)
            os.replace(temporary, final)
        _sync_folder(final.parent, out)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, CkptDoctorError):
            raise _explained(error, out, needed) from error
        raise


# What to do about an error of the system, where there is more to say than its name.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _explained(error: OSError, out: Path, needed: int) -> ApplyError:
    advice = "try again, or write to another disk"
    if error.errno in _FULL:
        size = f"{_size(needed)} are needed, " if needed else ""
        with suppress(OSError):
            size += f"{_size(shutil.disk_usage(_real(out).parent).free)} are free, "
        advice = f"{size}make room or write to another disk"
    elif error.errno in _DENIED:
        advice = "choose another folder"
    reason = printable(error.strerror or str(error))
    return ApplyError(f"`{printable(str(out))}` could not be written: {reason}; {advice}")


def _sync_folder(folder: Path, out: Path) -> None:
    """So that the new name survives a loss of power. Not every file system can, and none forgets the file."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise ApplyError(
                f"`{printable(str(out))}` is written, and the disk could not confirm it "
                f"({printable(error.strerror or str(error))}); check the disk, then write it again"
            ) from error


def check_space(folder: Path, needed: int) -> None:
    """Raise :class:`ApplyError` unless that many bytes are free."""
    total, _, free = shutil.disk_usage(folder)
    if total and free < needed + MARGIN:  # some network file systems report nothing at all
        raise ApplyError(
            f"not enough space in `{printable(str(folder))}`: the file needs {_size(needed + MARGIN)}, "
            f"{_size(free)} are free"
        )


def _real(out: Path) -> Path:
    """Behind symbolic links, so that the file is replaced and not the link."""
    return Path(os.path.realpath(out))


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn signals that would end the process at once into SystemExit, so that files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    names = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    ours = [n for n in names if signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
