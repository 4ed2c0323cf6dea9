"""`.pth`: a plain OrderedDict of CPU tensors with its ``_metadata``, in torch's zip format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable


def write_torch(values: Mapping[str, Any], path: Path) -> None:
    """Write with ``torch.save``; keys that are one tensor stay one. Raises :class:`ApplyError` or OSError."""
    import torch

    try:
        with path.open("wb") as file:
            torch.save(values, file)
    except OSError:
        raise
    except Exception as error:
        raise ApplyError(f"torch.save failed: {type(error).__name__}: {printable(str(error))}") from error
