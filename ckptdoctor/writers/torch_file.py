"""`.pth`: a plain OrderedDict of CPU tensors with its ``_metadata``, in torch's zip format."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from ckptdoctor.errors import ApplyError
from ckptdoctor.formats.blobs import Files
from ckptdoctor.receipt import listing
from ckptdoctor.writers.clone import start_over
from ckptdoctor.writers.enveloped import Outline, enveloped
from ckptdoctor.writers.pieces import Contents
from ckptdoctor.writers.stream import OnBytes, Rows, allocate, fill_rows, put
from ckptdoctor.writers.torch_clone import write_cloned
from ckptdoctor.writers.torch_pickle import state_dict_pickle
from ckptdoctor.writers.torch_save import save_with_torch
from ckptdoctor.writers.torch_zip import TorchZip


def write_torch(contents: Contents, path: Path, files: Files, on_bytes: OnBytes | None = None) -> None:
    """Copy and make the tensors into place. Raises :class:`ApplyError`, ReadError or OSError."""
    if contents.objects:
        if contents.envelope is not None:
            raise ApplyError(
                f"extra state that is no tensor ({listing(contents.objects)}) cannot be written into an "
                "envelope; without --keep-envelope the weights alone are written"
            )
        _save(contents, path)
        return
    outline = enveloped(contents, files) if contents.envelope is not None else _plain(contents)
    descriptor = os.open(path, os.O_RDWR)
    try:
        if not write_cloned(outline, descriptor, files, on_bytes):
            start_over(descriptor)
            _write_copied(outline, descriptor, files, on_bytes)
    finally:
        os.close(descriptor)


def _write_copied(outline: Outline, descriptor: int, files: Files, on_bytes: OnBytes | None) -> None:
    made = TorchZip(outline.pickle, outline.storages, computable=outline.computable)
    allocate(descriptor, made.layout.end)
    put(descriptor, 0, made.front())
    places = made.layout.headers[made.first : made.last + 1]
    sums = fill_rows(descriptor, Rows(made.pieces, places, made.heads, made.tails), files, on_bytes)
    put(descriptor, places[-1], made.behind(sums))


def _plain(contents: Contents) -> Outline:
    """A state dict and nothing else."""
    pieces = list(contents.pieces.values())
    own = list(dict.fromkeys(pieces))
    names = list(map(str, range(len(own))))
    used = names
    if len(own) < len(pieces):
        used = list(map(dict(zip(own, names, strict=True)).__getitem__, pieces))
    pickled = state_dict_pickle(zip(contents.pieces, pieces, used, strict=True), contents.versions)
    return Outline(pickled, dict(zip(names, own, strict=True)))


def _save(contents: Contents, path: Path) -> None:
    """With ``torch.save``, which can pickle any object; all tensors are in memory then."""

    made = {piece: piece.make().clone() for piece in dict.fromkeys(contents.pieces.values()) if piece.make}
    values: OrderedDict[str, Any] = OrderedDict((k, made[p]) for k, p in contents.pieces.items())
    values.update(contents.objects)
    vars(values)["_metadata"] = OrderedDict(contents.versions)
    save_with_torch(values, path)
