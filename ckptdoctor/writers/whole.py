"""A whole checkpoint from values in memory: state dict, optimizer, schedule and everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.formats.blobs import Files
from ckptdoctor.writers.atomic import check_place, replacing
from ckptdoctor.writers.pieces import Contents, Piece
from ckptdoctor.writers.safetensors_file import write_safetensors
from ckptdoctor.writers.torch_save import save_with_torch

if TYPE_CHECKING:
    from torch import Tensor


def write_whole(
    values: Mapping[str, Any], out: Path, *, safetensors: bool, check: Callable[[Path], None] | None = None
) -> None:
    """Write ``values`` to ``out`` by write, fsync, ``check`` of the new file, rename, fsync.

    ``.pth`` is what ``torch.save`` writes, nested as it is; ``.safetensors`` holds tensors alone. Whatever
    is raised on the way, ``out`` is as it was, and nothing is left beside it. Raises :class:`ApplyError`,
    or what ``check`` raises.
    """
    check_place(out)
    with replacing(out, sum(_bytes(v) for v in values.values())) as temporary:
        if safetensors:
            write_safetensors(_contents(values), temporary, Files())
        else:
            save_with_torch(values, temporary)
        if check is not None:
            check(temporary)


def _bytes(value: Any) -> int:
    return int(value.numel() * value.element_size()) if hasattr(value, "element_size") else 0


def _contents(values: Mapping[str, Any]) -> Contents:
    tensors = {k: v for k, v in values.items() if hasattr(v, "element_size")}
    others = {k: v for k, v in values.items() if k not in tensors}
    return Contents({k: _piece(v) for k, v in tensors.items()}, objects=others)


def _piece(tensor: Tensor) -> Piece:
    return Piece(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), make=lambda: tensor)
