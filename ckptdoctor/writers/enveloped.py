"""A new state dict inside of the envelope of another file: what is around it stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from ckptdoctor.formats.blobs import Files, fill
from ckptdoctor.formats.envelope import Envelope, Kept, fits_exactly
from ckptdoctor.formats.spans import Span
from ckptdoctor.trees import DTYPE_SIZES
from ckptdoctor.writers.pieces import Contents, Piece, bytes_of
from ckptdoctor.writers.torch_pickle import Lent, state_dict_opcodes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Outline:
    """The pickle of a new file, and its storages by name, in the order in which the pickle names them."""

    pickle: bytes
    storages: dict[str, Piece]
    computable: bool = True  # whether readers may compute where each storage is


def enveloped(contents: Contents, files: Files) -> Outline:
    """The outline of a file that has everything of the envelope, and ``contents`` for its state dict.

    A tensor that is copied from a storage which the envelope has too stays a view of it.
    """
    envelope = contents.envelope
    assert envelope is not None
    lent = {key: found for key, p in contents.pieces.items() if (found := _lent(p, envelope)) is not None}
    names = _new_names(contents, envelope, lent)
    order: dict[str, Piece] = {}

    def own() -> bytes:
        for key, piece in contents.pieces.items():
            name = names[piece]
            if key in lent:
                order.setdefault(name, _whole(envelope.kept[name], files))
            else:
                order[name] = piece
        entries = [(key, piece, names[piece]) for key, piece in contents.pieces.items()]
        return state_dict_opcodes(entries, contents.versions, first=envelope.tree.numbers, lent=lent)

    def seen(name: str) -> None:
        order.setdefault(name, _whole(envelope.kept[name], files))

    pickle = envelope.written(own, seen)
    return Outline(pickle, order, all(map(fits_exactly, envelope.kept.values())))


def _lent(piece: Piece, envelope: Envelope) -> Lent | None:
    """Where a piece is in a storage of the envelope; None where it needs one of its own."""
    span = piece.span
    kept = envelope.kept.get(span.storage) if span is not None else None
    if span is None or kept is None or not piece.nbytes:
        return None
    offset = (span.offset - kept.ref.offset) // DTYPE_SIZES[piece.dtype]
    return Lent(kept.kind, kept.device, kept.numel, offset)


def _new_names(contents: Contents, envelope: Envelope, lent: dict[str, Lent]) -> dict[Piece, str]:
    """A whole storage keeps its name; others get numbers that no storage of the old file has."""
    known = envelope.archive.storages
    free = (str(n) for n in count() if str(n) not in known)
    names: dict[Piece, str] = {}
    taken = set(envelope.kept)
    for key, piece in contents.pieces.items():
        if piece in names:
            continue
        own = piece.span.storage if piece.span is not None else ""
        keeps = piece.span is not None and piece.span.whole and own.isalnum() and own not in taken
        names[piece] = own if key in lent or keeps else next(free)
        taken.add(names[piece])
    return names


def _whole(kept: Kept, files: Files) -> Piece:
    """A whole storage, to be copied as it is."""
    ref = kept.ref
    if not ref.compression and ref.inline is None:
        return Piece((ref.nbytes,), "uint8", Span(ref.file, ref.offset, ref.crc, True, kept.key))

    def unpacked() -> Tensor:
        import torch

        from ckptdoctor.errors import CorruptCheckpointError

        made = torch.empty(ref.nbytes, dtype=torch.uint8)
        if ref.nbytes and not fill(files, ref, bytes_of(made), check=True):
            raise CorruptCheckpointError(
                f"{ref.file}: the bytes of storage {kept.key} do not fit their checksum"
            )
        return made

    return Piece((ref.nbytes,), "uint8", make=unpacked)
