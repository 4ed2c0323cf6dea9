"""Trees: all keys of a model or of a checkpoint, with specs, in order. No torch here."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from json.encoder import encode_basestring_ascii
from math import prod
from operator import itemgetter
from typing import Literal

from ckptdoctor.columns import tally
from ckptdoctor.facts import Fact

Kind = Literal["param", "buffer", ""]

# Bytes per element of every torch dtype, named without "torch.". Sub-byte dtypes count as stored.
DTYPE_SIZES: dict[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "complex32": 4, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1,
}  # fmt: skip


_ROWS = 10_000  # of a digest's text at a time


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Everything known of one tensor without its values.

    ``strides`` and ``offset`` count elements. ``storage`` names the memory: two keys with the same
    ``storage`` share it (a tie when offset, shape and strides agree as well, else views).
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: Kind = ""
    device: str = "cpu"
    strides: tuple[int, ...] | None = None  # None: contiguous
    storage: str = ""  # "": unknown or its own
    offset: int = 0
    storage_bytes: int = 0  # 0: unknown
    layout: str = "strided"  # or "sparse_coo", "sparse_csr", "quantized", ...

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a dense copy."""
        return self.numel * DTYPE_SIZES.get(self.dtype, 1)


class AlikeSpecs(Mapping[str, TensorSpec]):
    """Specs of which many are alike but for their storages, and cost something to be told apart."""

    @abstractmethod
    def alike(self) -> Iterable[tuple[str, TensorSpec]]:
        """Each key with a spec that is its own but for the storage."""

    @property
    @abstractmethod
    def apart(self) -> bool:
        """Whether no storage belongs to two keys."""


@dataclass(frozen=True)
class ParamTree:
    """All keys of a model or of one state dict of a checkpoint, in order.

    ``modules`` maps a module's path to its class name (a live model knows it, a file does not).
    ``extra`` holds state-dict entries that are no tensors (``_extra_state``), described in words.
    ``transient`` holds non-persistent buffers: in the model, never in its state dict.
    ``renamed`` holds what a model declares of older checkpoints: pattern of its keys -> their old names.
    ``facts`` are numbers that no shape shows (head counts ...), as far as this side knows them.
    """

    specs: Mapping[str, TensorSpec]
    ordered: bool = True  # registration order is known (a sorted header proves nothing)
    modules: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)  # `_metadata`, by module path
    extra: Mapping[str, str] = field(default_factory=dict)
    transient: Mapping[str, TensorSpec] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, key: object) -> bool:
        return key in self.specs

    def __getitem__(self, key: str) -> TensorSpec:
        return self.specs[key]

    @property
    def numel(self) -> int:
        """Number of values, tied ones counted once."""
        seen: set[str] = {k for group in self.ties for k in group[1:]}
        return sum(spec.numel for key, spec in self.specs.items() if key not in seen)

    @cached_property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of two or more keys that are one and the same tensor, in order."""
        groups: dict[tuple[object, ...], list[str]] = {}
        if isinstance(self.specs, AlikeSpecs) and self.specs.apart:
            return ()
        for key, s in self.specs.items():
            if s.storage and s.numel:
                groups.setdefault((s.storage, s.offset, s.shape, s.strides, s.dtype), []).append(key)
        return tuple(tuple(g) for g in groups.values() if len(g) > 1)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape."""
        return {key: spec.shape for key, spec in self.alike()}

    def alike(self) -> Iterable[tuple[str, TensorSpec]]:
        """Keys and specs, of which the storages do not count: cheaper than ``specs.items()`` for files."""
        return self.specs.alike() if isinstance(self.specs, AlikeSpecs) else self.specs.items()

    @cached_property
    def dtypes(self) -> frozenset[str]:
        """All dtypes of the tensors."""
        return frozenset([spec.dtype for _, spec in self.alike()])

    @cached_property
    def devices(self) -> Counter[str]:
        """How many tensors each device tag has, in order of appearance."""
        return tally(spec.device for _, spec in self.alike())

    @cached_property
    def digest(self) -> str:
        """``sha256:...`` of keys, shapes, dtypes and ties; key order, device and container do not count."""
        # The text of `[[[key, shape, dtype], ...], ties]`, a part at a time: it is as large as the tree.
        made, rows = hashlib.sha256(b"[["), sorted(self.alike(), key=itemgetter(0))
        ends: dict[tuple[object, ...], str] = {}
        for at in range(0, len(rows), _ROWS):
            texts = []
            for key, spec in rows[at : at + _ROWS]:
                kind = (spec.shape, spec.dtype)
                if kind not in ends:
                    sizes = ",".join(map(str, spec.shape))
                    ends[kind] = f",[{sizes}],{encode_basestring_ascii(spec.dtype)}]"
                texts.append(f"[{encode_basestring_ascii(key)}{ends[kind]}")
            made.update((b"," if at else b"") + ",".join(texts).encode())
        ties = json.dumps(sorted(sorted(g) for g in self.ties), separators=(",", ":"))
        made.update(f"],{ties}]".encode())
        return "sha256:" + made.hexdigest()

    def subset(self, keys: Iterable[str]) -> ParamTree:
        """The same tree with these keys only."""
        return replace(self, specs={k: self.specs[k] for k in keys})
