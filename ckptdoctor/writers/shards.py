"""Several files and an index, as large models are published: ``name-00001-of-00003.safetensors``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptdoctor.errors import ApplyError
from ckptdoctor.formats.safetensors import LARGEST_HEADER
from ckptdoctor.keys import printable
from ckptdoctor.writers.pieces import Contents, Piece

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.I)


def size_of(text: str | int) -> int:
    """``"5GB"`` -> 5,000,000,000; ``"2GiB"``, ``"500mb"`` and plain numbers likewise. Raises ApplyError."""
    found = _SIZE.fullmatch(str(text).strip())
    size = 0
    if found is not None:
        power = " kmgt".index(found[2].lower() or " ")
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if size < 1:
        raise ApplyError(f"{printable(str(text))!r} is no size; write 5GB, 500MB or 2GiB")
    return size


def split(contents: Contents, most: int) -> list[Contents]:
    """Parts of at most that many bytes of tensors, in order; a larger tensor has a part of its own.

    Keys that are one tensor are in one part. No part has more keys than a header has room for.
    """
    parts: list[dict[str, Piece]] = [{}]
    home: dict[Piece, dict[str, Piece]] = {}
    size = text = 0
    for key, piece in contents.pieces.items():
        if piece not in home:
            size, text = size + piece.nbytes, text + _entry_bytes(key, piece)
            if parts[-1] and (size > most or text > LARGEST_HEADER):
                parts.append({})
                size, text = piece.nbytes, _entry_bytes(key, piece)
            home[piece] = parts[-1]
        else:
            text += _entry_bytes(key, piece)
        home[piece][key] = piece
    return [Contents(pieces, _below(contents.versions, pieces)) for pieces in parts]


def _entry_bytes(key: str, piece: Piece) -> int:
    """At least what a key takes in the header of safetensors."""
    return len(json.dumps(key)) + 22 * len(piece.shape) + 100


def _below(
    versions: Mapping[str, Mapping[str, int]], keys: Mapping[str, Piece]
) -> dict[str, Mapping[str, int]]:
    paths = {key.rpartition(".")[0] for key in keys}
    return {path: facts for path, facts in versions.items() if path in paths or not path}


def index_of(out: Path) -> Path:
    """Where the index of the shards of ``out`` stands."""
    return out.with_name(f"{out.name}.index.json")


def names(out: Path, count: int) -> tuple[Path, list[Path]]:
    """The index and the shards for ``out``. Raises :class:`ApplyError` when one of them exists."""
    index = index_of(out)
    shards = [out.with_name(f"{out.stem}-{n:05d}-of-{count:05d}{out.suffix}") for n in range(1, count + 1)]
    there = [path for path in (index, *shards) if path.exists()]
    if there:
        raise ApplyError(
            f"`{printable(str(there[0]))}` exists; shards replace nothing, because several files cannot be "
            "replaced at once. Remove it or name another file"
        )
    return index, shards


def index_text(shards: Sequence[Path], parts: Sequence[Contents]) -> str:
    """What loaders of sharded checkpoints read: key -> file."""
    weight_map = {key: path.name for path, part in zip(shards, parts, strict=True) for key in part.pieces}
    total = sum(p.nbytes for part in parts for p in part.pieces.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
