"""The safetensors format, by its own strict rules, read from the header alone.

Layout (github.com/huggingface/safetensors, README "Format"): 8 bytes header length N, little-endian;
N bytes of UTF-8 JSON; then one buffer that the tensors fill without gaps or overlap.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

from ckptdoctor.errors import CorruptCheckpointError
from ckptdoctor.formats.base import Archive, StateDict, StorageRef
from ckptdoctor.formats.source import FileSource, corrupt
from ckptdoctor.formats.words import show
from ckptdoctor.trees import ParamTree, TensorSpec

LARGEST_HEADER = 100_000_000  # the format's own limit
METADATA = "__metadata__"

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
    header, start = _header(source)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise corrupt(source.path, "its __metadata__ is no mapping of strings to strings", ADVICE)
    specs: dict[str, TensorSpec] = {}
    storages: dict[str, StorageRef] = {}
    spans: list[tuple[int, int, str]] = []
    for key, info in header.items():
        spec, begin, end = _tensor(source.path, key, info)
        specs[key] = spec
        spans.append((begin, end, key))
        storages[key] = StorageRef(source.path, start + begin, end - begin, spec.dtype, "cpu")
    _check_spans(source, start, spans)
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


def _header(source: FileSource) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(source.exactly(0, 8, "the header length"), "little")
    if length > LARGEST_HEADER:
        raise corrupt(source.path, f"its header of {length} bytes is larger than the format allows", ADVICE)
    raw = source.exactly(8, length, "the safetensors header")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except _DuplicateKeyError as error:
        raise corrupt(source.path, f"its header names {show(error)} twice", ADVICE) from None
    except UnicodeDecodeError:
        raise corrupt(source.path, "its header is not UTF-8", ADVICE) from None
    except (ValueError, RecursionError) as error:
        raise corrupt(source.path, f"its header is no JSON ({show(error, 100)})", ADVICE) from None
    if not isinstance(header, dict):
        raise corrupt(source.path, "its header is no JSON object", ADVICE)
    return header, 8 + length


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


def _tensor(path: str, key: str, info: Any) -> tuple[TensorSpec, int, int]:
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, key, "does not have exactly dtype, shape and data_offsets")
    shape, offsets = info["shape"], info["data_offsets"]
    known = DTYPES.get(info["dtype"]) if isinstance(info["dtype"], str) else None
    if known is None:
        raise _bad(path, key, f"has the unknown dtype {show(info['dtype'], 40)!r}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise _bad(path, key, "has a shape that is no list of sizes")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and n >= 0 for n in offsets)
    ):
        raise _bad(path, key, "has data_offsets that are no pair of numbers")
    dtype, bits = known
    begin, end = offsets
    needed = prod(shape) * bits
    if needed % 8 or (end - begin) * 8 != needed:
        raise _bad(path, key, f"needs {needed // 8} bytes and has {end - begin}")
    if bits == 4:  # two values to an element of torch's dtype
        if not shape or shape[-1] % 2:
            raise _bad(path, key, "has 4-bit values in a last dimension that is odd")
        shape = [*shape[:-1], shape[-1] // 2]
    return TensorSpec(tuple(shape), dtype, storage=key, storage_bytes=end - begin), begin, end


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
