"""The safetensors format, by its own strict rules, read from the header alone.

Layout (github.com/huggingface/safetensors, README "Format"): 8 bytes header length N, little-endian;
N bytes of UTF-8 JSON; then one buffer that the tensors fill without gaps or overlap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats.base import Archive, StateDict, StorageRef
from ckptdoctor.formats.source import FileSource, corrupt
from ckptdoctor.formats.words import show
from ckptdoctor.trees import ParamTree, TensorSpec

if TYPE_CHECKING:
    from ckptdoctor.formats.lazy import LazySpecs, LazyStorages

LARGEST_HEADER = 100_000_000  # the format's own limit
METADATA = "__metadata__"
FIELDS = frozenset({"dtype", "shape", "data_offsets"})
MOST_DIMENSIONS = 256
SHORT = 1 << 12  # characters of a header that is not worth to be read by columns

# safetensors dtype -> torch dtype, bits per element
DTYPES = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8),
    "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8),
    "BOOL": ("bool", 8), "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F4": ("float4_e2m1fn_x2", 4),
}  # fmt: skip
ADVICE = "download it again, or save it again where it was made"


class _DuplicateKeyError(ValueError):
    pass


def open_safetensors(source: FileSource) -> Archive:
    """Read a safetensors file; raises CorruptCheckpointError naming the tensor that breaks a rule."""
    text, start = _text(source)
    rows = _rows(source, text, start) if len(text) > SHORT else None
    if rows is not None:
        return _archive(source, *rows)
    header = _parsed(source, text)
    metadata = header.pop(METADATA, {})
    specs: dict[str, TensorSpec] = {}
    storages: dict[str, StorageRef] = {}
    spans: list[tuple[int, int, str]] = []
    tensors = _Tensors(source.path)
    if not _is_metadata(metadata):
        raise corrupt(source.path, "its __metadata__ is no mapping of strings to strings", ADVICE)
    for key, info in header.items():
        spec, begin, end = tensors.spec(key, info)
        specs[key] = spec
        spans.append((begin, end, key))
        storages[key] = StorageRef(source.path, start + begin, end - begin, spec.dtype, "cpu")
    _check_spans(source, start, spans)
    return _archive(source, specs, storages, metadata)


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _rows(
    source: FileSource, text: str, start: int
) -> tuple[LazySpecs, LazyStorages, Mapping[str, str]] | None:
    """The header by columns; None where it has to be parsed, or there is something to say about it."""
    from ckptdoctor.formats.safetensors_columns import read_columns

    tensors = _Tensors(source.path)
    try:
        rows = read_columns(text, source.path, start, lambda dtype, sizes: tensors.form("", dtype, sizes))
        metadata = _parsed(source, rows.metadata) if rows is not None else None
    except CorruptCheckpointError:
        return None
    if rows is None or not _is_metadata(metadata) or start + rows.storages.sizes.total != source.size:
        return None
    return rows.specs, rows.storages, metadata or {}


def _archive(
    source: FileSource,
    specs: Mapping[str, TensorSpec],
    storages: Mapping[str, StorageRef],
    metadata: Mapping[str, str],
) -> Archive:
    hints = {k: show(v, 200) for k, v in metadata.items() if k != "format"}
    if "format" in metadata:
        hints["format"] = show(metadata["format"], 20)
    return Archive(
        path=source.path,
        format="safetensors",
        description="safetensors",
        size=source.size,
        state_dicts=(StateDict("", ParamTree(specs, ordered=False)),),
        storages=storages,
        tensors=len(specs),
        hints=hints,
        files=(source.path,),
    )


def _text(source: FileSource) -> tuple[str, int]:
    """The header, and where the tensors begin."""
    length = int.from_bytes(source.exactly(0, 8, "the header length"), "little")
    if length > LARGEST_HEADER:
        raise corrupt(source.path, f"its header of {length} bytes is larger than the format allows", ADVICE)
    raw = source.exactly(8, length, "the safetensors header")
    try:
        return raw.decode("utf-8"), 8 + length
    except UnicodeError:
        raise corrupt(source.path, "its header is not UTF-8", ADVICE) from None


def _parsed(source: FileSource, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
        "".join(header).encode()  # an escaped half of a surrogate pair is no text
    except _DuplicateKeyError as error:
        raise corrupt(source.path, f"its header names {show(error)} twice", ADVICE) from None
    except UnicodeError:
        raise corrupt(source.path, "its header is not UTF-8", ADVICE) from None
    except (ValueError, RecursionError) as error:
        raise corrupt(source.path, f"its header is no JSON ({show(error, 100)})", ADVICE) from None
    if not isinstance(header, dict):
        raise corrupt(source.path, "its header is no JSON object", ADVICE)
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(repr(key))
            seen.add(key)
    return made


def _bad(path: str, key: str, what: str) -> CorruptCheckpointError:
    return corrupt(path, f"tensor {show(key)!r} {what}", ADVICE)


class _Tensors:
    """Header entries become specs; what a (dtype, shape) pair comes to is worked out once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._known: dict[tuple[Any, ...], tuple[tuple[int, ...], str, int]] = {}

    def spec(self, key: str, info: Any) -> tuple[TensorSpec, int, int]:
        """The spec, first and last byte within the buffer."""
        if type(info) is not dict or len(info) != 3 or not FIELDS.issuperset(info):
            raise _bad(self.path, key, "does not have exactly dtype, shape and data_offsets")
        offsets = info["data_offsets"]
        if type(offsets) is not list or len(offsets) != 2:
            raise _bad(self.path, key, "has data_offsets that are no pair")
        begin, end = offsets
        if type(begin) is not int or type(end) is not int or begin < 0:
            raise _bad(self.path, key, "has data_offsets that are no whole numbers")
        shape, dtype, needed = self.form(key, info["dtype"], info["shape"])
        if end - begin != needed:
            raise _bad(self.path, key, f"needs {needed} bytes and has {end - begin}")
        return TensorSpec(shape, dtype, storage=key, storage_bytes=needed), begin, end

    def form(self, key: str, dtype: Any, shape: Any) -> tuple[tuple[int, ...], str, int]:
        """The shape and dtype as torch has them, and the bytes of a tensor."""
        if type(dtype) is not str or type(shape) is not list or not all(type(n) is int for n in shape):
            raise _bad(self.path, key, "has a dtype that is no word, or a shape that is no list of sizes")
        form = (dtype, *shape)
        found = self._known.get(form)
        if found is None:
            found = self._known[form] = self._new_form(key, dtype, shape)
        return found

    def _new_form(self, key: str, dtype: str, shape: list[int]) -> tuple[tuple[int, ...], str, int]:
        if dtype not in DTYPES:
            raise _bad(self.path, key, f"has the unknown dtype {show(dtype, 40)!r}")
        if any(not 0 <= n < 2**63 for n in shape) or len(shape) > MOST_DIMENSIONS:
            raise _bad(self.path, key, "has sizes that cannot be")
        name, bits = DTYPES[dtype]
        nbytes, odd = divmod(prod(shape) * bits, 8)
        if bits == 4:  # two values to an element of torch's dtype
            odd = odd or not shape or shape[-1] % 2
            shape = [*shape[:-1], shape[-1] // 2] if shape else shape
        if odd:
            raise _bad(self.path, key, "does not fill whole bytes")
        return tuple(shape), name, nbytes


def _check_spans(source: FileSource, start: int, spans: list[tuple[int, int, str]]) -> None:
    """The buffer is covered from its first to its last byte, nothing twice."""
    position = 0
    for begin, end, key in sorted(spans):
        if begin != position:
            raise _bad(
                source.path, key, f"begins at byte {begin} of the buffer, not at {position} (gap or overlap)"
            )
        position = end
    if start + position != source.size:
        raise corrupt(
            source.path,
            f"its tensors end at byte {start + position}, the file has {source.size}"
            + (" (truncated)" if start + position > source.size else ""),
        )
