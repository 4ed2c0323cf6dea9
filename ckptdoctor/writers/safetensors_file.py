"""`.safetensors`: tensors only, each key with its own bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable
from ckptdoctor.receipt import listing


def write_safetensors(values: Mapping[str, Any], path: Path) -> None:
    """Write with the safetensors library. Raises :class:`ApplyError` or OSError.

    The format knows no shared tensors, so a tied key gets its own copy of the bytes: the file then has all
    keys, and a plain strict ``load_state_dict(load_file(...))`` works. ``_metadata`` has no place in it.
    """
    import torch

    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ApplyError(
            "writing .safetensors needs a package: pip install safetensors; or write a .pth file instead"
        ) from None
    other = [key for key, value in values.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise ApplyError(f".safetensors holds tensors only, not {listing(other)}; write a .pth file instead")
    try:
        with _room(path) as inside:
            save_file(_unshared(values), inside, metadata={"format": "pt"})
            os.replace(inside, path)
    except OSError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {printable(str(error))}"
        raise ApplyError(f"safetensors could not write this ({what}); write a .pth file instead") from error


@contextmanager
def _room(path: Path) -> Iterator[Path]:
    """A file in a folder of its own beside ``path``.

    The library writes to a temporary file of a name of its choice in the same folder, and a killed process
    would leave that where nobody could tell whose it is.
    """
    folder = path.with_name(path.name + ".d")
    folder.mkdir()
    try:
        yield folder / "file"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unshared(values: Mapping[str, Any]) -> dict[str, Any]:
    seen: set[int] = set()
    result = {}
    for key, value in values.items():
        memory = value.untyped_storage().data_ptr() if value.numel() else 0
        result[key] = value.clone() if memory in seen and memory else value
        seen.add(memory)
    return result
