"""What a user does with the file: ``torch.load(weights_only=True)`` or ``load_file``, nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptdoctor.errors import VerifyError
from ckptdoctor.keys import printable


def plain_load(path: Path) -> Mapping[str, Any]:
    """The state dict as torch or safetensors read it, memory-mapped. Raises :class:`VerifyError`."""
    try:
        return _load(path)
    except Exception as error:
        what = f"{type(error).__name__}: {printable(str(error))[:300]}"
        raise VerifyError(
            f"the new file cannot be loaded by plain torch ({what}); no file was written"
        ) from error


def _load(path: Path) -> Mapping[str, Any]:
    import torch

    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        found: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return found
    from safetensors.torch import load_file

    tensors: Mapping[str, Any] = load_file(path)
    return tensors
