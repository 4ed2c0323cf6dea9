"""``torch.save`` for what only it can pickle, with errors that say what happened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable


class _Noting:
    """A file that keeps the first error of the disk: torch turns it into words about its own code."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def save_with_torch(values: Mapping[str, Any], path: Path) -> None:
    """Write them as ``torch.save`` does. Raises OSError, or ApplyError for what cannot be pickled."""
    import torch

    with path.open("wb") as file:
        noting = _Noting(file)
        try:
            torch.save(values, noting)  # type: ignore[arg-type]  # it needs no more than these methods
        except Exception as error:
            if noting.error is not None:
                raise noting.error from error
            if isinstance(error, OSError):
                raise
            what = f"{type(error).__name__}: {printable(str(error))}"
            raise ApplyError(f"torch.save failed: {what}") from error
