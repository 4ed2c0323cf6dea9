"""Sharing blocks with the source instead of copying bytes, where the file system can (xfs, btrfs, ...).

``FICLONERANGE`` of ioctl_ficlonerange(2) shares whole blocks only, so what is shared has to lie in both
files at the same place within a block. Headers are padded for that.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

BLOCK = 4096  # what xfs and btrfs use, and what larger blocks refuse (EINVAL)
FICLONERANGE = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range), linux/fs.h
WORTHWHILE = 1 << 20  # bytes; below, copying is as fast
_UNABLE = {
    errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY, errno.ENOSYS,
    errno.EBADF, errno.EISDIR,
}  # fmt: skip


def can_clone(source: int, target: int) -> bool:
    """Whether the two files (descriptors) may share blocks. The first block of the new file may be lost."""
    if sys.platform != "linux" or os.fstat(source).st_dev != os.fstat(target).st_dev:
        return False
    return os.fstat(source).st_size >= WORTHWHILE and _clone(source, 0, target, 0, BLOCK)


def share(source: int, start: int, target: int, place: int, nbytes: int) -> tuple[int, int] | None:
    """Share the whole blocks of those bytes; where they begin and end in ``target``, None if it cannot be.

    ``start`` is the place in ``source``; the two places must agree within a block. Raises OSError when the
    disk fails.
    """
    first = -(-place // BLOCK) * BLOCK
    last = (place + nbytes) // BLOCK * BLOCK
    if (place - start) % BLOCK or last - first < WORTHWHILE:
        return None
    if not _clone(source, start + first - place, target, first, last - first):
        return None
    return first, last


def start_over(descriptor: int) -> None:
    """Empty the new file, to copy into it instead.

    A file that is empty is left alone: what was once truncated to nothing, ext4 sends to the disk as a whole
    when it is closed, though the fsync comes after that (``EXT4_STATE_DA_ALLOC_CLOSE``, fs/ext4/inode.c).
    """
    if os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, 0)


def _clone(source: int, start: int, target: int, place: int, nbytes: int) -> bool:
    import fcntl

    try:
        fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, start, nbytes, place))
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    return True
