"""A file as copy-on-write memory, and where mapping one is a good idea.

A mapped tensor costs neither time nor memory before it is used, and writing to it never reaches the file.
Two dangers remain, because the pages that were not written yet are the file's: a file that is edited in
place shows through, and one that is truncated ends the process (SIGBUS). Replacing it by a rename, as
every careful writer does, is safe.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

from ckptdoctor.formats.base import StorageRef
from ckptdoctor.formats.checksum import crc32

if TYPE_CHECKING:
    import torch

# File systems (as /proc/self/mountinfo names them) whose files other machines write, or that read slowly
# and page by page through a mapping. FUSE is here as a whole: most of it is sshfs and object stores.
REMOTE = (
    "nfs", "cifs", "smb", "fuse", "lustre", "ceph", "gpfs", "glusterfs", "afs", "9p", "beegfs", "wekafs",
    "orangefs", "pvfs", "ocfs2", "gfs2", "vboxsf", "prl_fs", "vmhgfs", "drvfs", "virtiofs",
)  # fmt: skip
ALIGNED = 8  # bytes; torch's own readers ask for no more
POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14; Python has no name for it yet
STEP = 2 << 20  # bytes that are brought in and summed at once


class FileMap:
    """One whole file, mapped privately; it stays mapped as long as a tensor over it lives."""

    def __init__(self, descriptor: int, size: int) -> None:
        if hasattr(mmap, "MAP_NORESERVE"):  # or a file larger than the memory could not be mapped
            flags = mmap.MAP_PRIVATE | mmap.MAP_NORESERVE
            self._memory = mmap.mmap(descriptor, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            self._memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        self._view = memoryview(self._memory)
        self._present: set[int] = set()  # blocks of STEP bytes that were brought in

    def crc32(self, offset: int, nbytes: int) -> int | None:
        """The checksum of these bytes; None where the system cannot bring them in: read them instead.

        It makes the pages present that the copy reads next, which costs as much as the copy itself. They are
        asked for first, because to touch what cannot be read would end the process.
        """
        crc, at, end = 0, offset, offset + nbytes
        while at < end:
            block, stop = at // STEP, min(at - at % STEP + STEP, end)
            if block not in self._present and not self._bring_in(block):
                return None
            crc = crc32(self._view[at:stop], crc)
            at = stop
        return crc

    def _bring_in(self, block: int) -> bool:
        if not sys.platform.startswith("linux"):
            return False
        first = block * STEP
        try:
            self._memory.madvise(POPULATE_READ, first, min(STEP, len(self._memory) - first))
        except OSError:  # an older Linux, or the file was cut or cannot be read
            return False
        self._present.add(block)
        return True

    @cached_property
    def address(self) -> int:
        """Where the file begins in memory."""
        import torch

        return self.tensor(dtype=torch.uint8, count=1, offset=0).data_ptr()

    def storage(self, offset: int, nbytes: int) -> torch.UntypedStorage:
        """The memory of these bytes."""
        import torch

        return self.tensor(dtype=torch.uint8, count=nbytes, offset=offset).untyped_storage()

    @cached_property
    def tensor(self) -> Callable[..., torch.Tensor]:
        """``tensor(dtype=, count=, offset=)``: so many values, over a storage of exactly their bytes."""
        import torch

        return partial(torch.frombuffer, self._memory)


def can_map(ref: StorageRef, itemsize: int, byteorder: str) -> bool:
    """Whether the bytes in the file are those of the tensor, where it can use them."""
    return (
        not ref.compression
        and ref.inline is None
        and ref.nbytes > 0
        and (ref.byteorder == byteorder or itemsize == 1)
        and (ref.offset % ALIGNED == 0 or ref.offset % itemsize == 0)
    )


def is_local(path: str) -> bool | None:
    """Whether the file is on a disk of this machine; None where that is not known. Only Linux tells."""
    mounts = _mounts()
    place = os.path.realpath(path)
    while place not in mounts:
        above = os.path.dirname(place)
        if above == place:
            return None
        place = above
    return not mounts[place].startswith(REMOTE)


@cache
def _mounts() -> dict[str, str]:
    """Mount point -> type of file system; proc(5), mountinfo."""
    found = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                fields = line.split(" ")
                point = fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]
                found[point] = fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        return {}
    return found
