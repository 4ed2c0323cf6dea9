"""What a user does with the file: ``torch.load(weights_only=True)`` or ``load_file``, nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptdoctor.errors import VerifyError
from ckptdoctor.keys import printable
from ckptdoctor.targets.outputs import load_plain


def plain_load(path: Path) -> Mapping[str, Any]:
    """The state dict as torch or safetensors read it, memory-mapped. Raises :class:`VerifyError`."""
    try:
        return load_plain(path)
    except Exception as error:
        what = f"{type(error).__name__}: {printable(str(error))[:300]}"
        raise VerifyError(
            f"the new file cannot be loaded by plain torch ({what}); no file was written"
        ) from error
