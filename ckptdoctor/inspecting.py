"""What a checkpoint holds, from its headers; apart from the other functions of the API, which import more."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptdoctor.formats import open_checkpoint

if TYPE_CHECKING:
    from ckptdoctor.formats.base import Archive


def inspect(path: str | os.PathLike[str], *, deep: bool = False) -> Archive:
    """Read what a checkpoint holds: state dicts, shapes, dtypes, devices, envelopes, what is unusual.

    Only headers are read; nothing in the file is executed and no torch is needed. ``deep=True`` reads the
    bytes as well and checks their checksums and for NaN and infinite values. Raises
    :class:`~ckptdoctor.errors.ReadError` (unknown, damaged or unreadable file).

    >>> archive = inspect("model.pth")                                  # doctest: +SKIP
    >>> [state_dict.path for state_dict in archive.state_dicts]         # doctest: +SKIP
    ['state_dict']
    """
    archive = open_checkpoint(path)
    if archive.mentions_optimizer:
        from ckptdoctor.training.checks import archive_findings

        archive = replace(archive, diagnostics=(*archive.diagnostics, *archive_findings(archive)))
    if deep:
        from ckptdoctor.formats import deep_check

        archive = replace(archive, diagnostics=(*archive.diagnostics, *deep_check(archive)))
    return archive
