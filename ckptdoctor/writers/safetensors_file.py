"""`.safetensors`: a JSON header, then each key's own bytes; in one file, or in shards with an index."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from ckptdoctor.errors import ApplyError
from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.safetensors import DTYPES, LARGEST_HEADER
from ckptdoctor.receipt import listing
from ckptdoctor.trees import DTYPE_SIZES
from ckptdoctor.writers.clone import BLOCK, can_clone, share, start_over
from ckptdoctor.writers.pieces import Contents, Piece
from ckptdoctor.writers.stream import OnBytes, Rows, allocate, fill_rows, put

NAMES = {torch: name for name, (torch, _) in DTYPES.items()}


def write_safetensors(contents: Contents, path: Path, files: Files, on_bytes: OnBytes | None = None) -> None:
    """Copy and make the tensors into place. Raises :class:`ApplyError`, ReadError or OSError.

    The format knows no shared tensors, so a tied key gets its own copy of the bytes: the file then has all
    keys, and a plain strict ``load_state_dict(load_file(...))`` works. ``_metadata`` has no place in it.
    """
    check_safetensors(contents)
    rows = ordered(contents.pieces)
    descriptor = os.open(path, os.O_RDWR)
    try:
        if not _write_cloned(rows, descriptor, files, on_bytes):
            start_over(descriptor)
            _write_copied(rows, descriptor, files, on_bytes)
    finally:
        os.close(descriptor)


def _write_copied(
    rows: Sequence[tuple[str, Piece]], descriptor: int, files: Files, on_bytes: OnBytes | None
) -> None:
    head, pieces = header(rows), [piece for _, piece in rows]
    places = list(accumulate((piece.nbytes for piece in pieces), initial=len(head)))
    allocate(descriptor, places[-1])
    put(descriptor, 0, head)
    fill_rows(descriptor, Rows(pieces, places), files, on_bytes)


def _write_cloned(
    rows: Sequence[tuple[str, Piece]], descriptor: int, files: Files, on_bytes: OnBytes | None
) -> bool:
    """Share the blocks of the source, where all tensors are in it in this order; False where it cannot be."""
    spans = [piece.span for _, piece in rows if piece.nbytes and piece.span is not None]
    sizes = [piece.nbytes for _, piece in rows if piece.nbytes]
    if not spans or len(spans) != len(sizes) or any(s.crc is not None for s in spans):
        return False
    start, nbytes = spans[0].offset, sum(sizes)
    due = list(accumulate(sizes[:-1], initial=start))
    if [(s.file, s.offset) for s in spans] != [(spans[0].file, at) for at in due]:
        return False
    source = files.descriptor(spans[0].file)
    padding = (start - len(header(rows))) % BLOCK
    if padding % 8 or not can_clone(source, descriptor):
        return False
    head = header(rows, padding)
    shared = share(source, start, descriptor, len(head), nbytes)
    if shared is None:
        return False
    shift = len(head) - start
    edges = [(len(head), shared[0]), (shared[1], len(head) + nbytes)]
    put(descriptor, 0, head)
    for a, b in edges:
        put(descriptor, a, os.pread(source, b - a, a - shift))
    if on_bytes is not None:
        on_bytes(shared[1] - shared[0])
    return True


def check_safetensors(contents: Contents) -> None:
    """Whether the format can hold it. Raises :class:`ApplyError` with what to do."""
    if contents.objects:
        raise ApplyError(
            f".safetensors holds tensors only, not {listing(contents.objects)}; write a .pth file instead"
        )
    unknown = sorted({p.dtype for p in contents.pieces.values()} - NAMES.keys())
    if unknown:
        raise ApplyError(f".safetensors has no dtype {', '.join(unknown)}; write a .pth file instead")
    if "__metadata__" in contents.pieces:
        raise ApplyError("`__metadata__` cannot be a key in .safetensors; write a .pth file instead")


def ordered(pieces: Mapping[str, Piece]) -> list[tuple[str, Piece]]:
    """Wide dtypes first, as the format's own library does: each tensor is aligned to its items then."""
    return sorted(pieces.items(), key=lambda row: (-DTYPE_SIZES[row[1].dtype], row[0]))


_quoted = json.JSONEncoder(ensure_ascii=False).encode


@lru_cache(1 << 10)
def _form(dtype: str, shape: tuple[int, ...]) -> str:
    """What the header says of a tensor before it says where its bytes are."""
    if dtype == "float4_e2m1fn_x2":  # two values to an item
        shape = (*shape[:-1], 2 * shape[-1])
    sizes = json.dumps(shape, separators=(",", ":"))
    return f'{{"dtype":"{NAMES[dtype]}","shape":{sizes},"data_offsets":'


def header(rows: Sequence[tuple[str, Piece]], padding: int = 0) -> bytes:
    """The length and the JSON, padded to eight bytes and by ``padding`` more."""
    parts, at = ['{"__metadata__":{"format":"pt"}'], 0
    for key, piece in rows:
        end = at + piece.nbytes
        parts.append(f"{_quoted(key)}:{_form(piece.dtype, piece.shape)}[{at},{end}]}}")
        at = end
    try:
        text = (",".join(parts) + "}").encode()
    except UnicodeEncodeError:
        raise ApplyError(".safetensors cannot hold a key that is no valid text; write a .pth file") from None
    text += b" " * (-len(text) % 8 + padding)
    if len(text) > LARGEST_HEADER:
        size, most = len(text) / 1e6, LARGEST_HEADER / 1e6
        keys = f"{len(rows):,} keys"
        raise ApplyError(
            f"the header for {keys} would take {size:,.0f} MB, and .safetensors allows {most:,.0f}. "
            "Write several files with `ckptdoctor repair ... --max-shard-size 5GB` (in Python "
            'max_shard_size="5GB"), or one .pth file'
        )
    return len(text).to_bytes(8, "little") + text
