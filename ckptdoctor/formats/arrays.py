"""numpy arrays from the way they are pickled, without numpy.

``numpy.ndarray.__reduce__``: ``_reconstruct(ndarray, (0,), b"b")`` and the state ``(version, shape,
dtype, fortran, bytes)``; from protocol 5 on ``_frombuffer(buffer, dtype, shape, order)``.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ckptdoctor.formats.base import StorageRef
from ckptdoctor.formats.inert import Inert, StorageRecord, TensorRecord
from ckptdoctor.formats.walk import children, is_container
from ckptdoctor.trees import DTYPE_SIZES

MAKERS = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
DTYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32", "i2": "int16",
    "i1": "int8", "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8", "b1": "bool",
    "c8": "complex64", "c16": "complex128",
}  # fmt: skip

OF_ARRAYS = " that holds numpy arrays"  # what `torch.load` gives is no tensor then

Array = tuple[TensorRecord, bytes, str]  # the tensor, its bytes, their byte order


def place_arrays(root: Any, path: str, first: int = 0) -> dict[str, StorageRef]:
    """Put a tensor in the place of every numeric array that a dict or list of `root` holds.

    Returns their bytes, which the pickle holds itself, as storages of the file `path`, numbered from `first`.
    """
    refs: dict[str, StorageRef] = {}
    seen: set[int] = set()
    made: dict[int, TensorRecord] = {}
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for key, value in _entries(node):
            if not (isinstance(value, Inert) and is_array(value)):
                continue
            if id(value) not in made and (found := array_record(value, f"#{first + len(refs)}")):
                record, content, byteorder = found
                refs[record.storage.key] = inline_ref(path, record.storage, content, byteorder)
                made[id(value)] = record
            if id(value) in made:
                node[key] = made[id(value)]
        stack.extend(value for _, value in children(node, "", is_container))
    return refs


def _entries(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def inline_ref(path: str, storage: StorageRecord, content: bytes, byteorder: str = "little") -> StorageRef:
    """A storage whose bytes were found inside the pickle."""
    return StorageRef(
        path,
        0,
        len(content),
        storage.dtype,
        storage.device,
        byteorder=byteorder,
        member=storage.key,
        inline=content,
    )


def is_array(value: Inert) -> bool:
    """A pickled ``numpy.ndarray``?"""
    return value.module in MAKERS and value.name in ("_reconstruct", "_frombuffer")


def array_record(value: Inert, key: str) -> Array | None:
    """The array as a tensor over a storage of its own named `key`; None for strings, objects, records."""
    if value.name == "_frombuffer" and len(value.args) == 4:
        raw, dtype, shape, order = value.args
        fortran = order == "F"
    elif isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, raw = value.state
    else:
        return None
    content, described = _content(raw), _dtype(dtype)
    if content is None or described is None or not isinstance(shape, tuple):
        return None
    name, byteorder = described
    if not all(type(n) is int and n >= 0 for n in shape) or prod(shape) * DTYPE_SIZES[name] != len(content):
        return None
    stride = _strides(tuple(reversed(shape)))[::-1] if fortran else _strides(shape)
    storage = StorageRecord(key, name, "cpu", prod(shape))
    return TensorRecord(storage, 0, shape, stride), content, byteorder


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def _content(raw: Any) -> bytes | None:
    if isinstance(raw, bytes | bytearray | memoryview):
        return bytes(raw)
    if isinstance(raw, Inert) and raw.what == "_codecs.encode" and raw.args and isinstance(raw.args[0], str):
        try:
            return raw.args[0].encode("latin1")
        except UnicodeEncodeError:
            return None
    if isinstance(raw, str):  # written by Python 2
        try:
            return raw.encode("latin1")
        except UnicodeEncodeError:
            return None
    return None


def _dtype(value: Any) -> tuple[str, str] | None:
    """(torch's name, byte order) of a pickled ``numpy.dtype``."""
    if not isinstance(value, Inert) or value.what != "numpy.dtype" or not value.args:
        return None
    name = DTYPES.get(value.args[0]) if isinstance(value.args[0], str) else None
    if name is None:
        return None
    big = isinstance(value.state, tuple) and len(value.state) > 1 and value.state[1] == ">"
    return name, "big" if big else "little"
