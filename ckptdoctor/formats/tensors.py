"""Values: one tensor of a state dict at a time, as a torch tensor on the CPU. torch is imported lazily."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats.base import Archive, Recipe, StateDict, StorageRef
from ckptdoctor.formats.blobs import Files, fill
from ckptdoctor.formats.findings import bad_crc
from ckptdoctor.formats.views import element_size
from ckptdoctor.formats.words import listing, show
from ckptdoctor.trees import TensorSpec

if TYPE_CHECKING:
    import torch


class TensorReader:
    """``reader(key)`` gives the tensor of `key`; keys that share a storage share memory.

    The tensors are private copies: nothing is mapped, so the file may change or go away afterwards.
    A storage that several keys use is kept until the last of them was asked for. With `check_crc`
    the zip's checksums are verified for all bytes that are read.
    """

    def __init__(self, archive: Archive, state_dict: StateDict, *, check_crc: bool = True) -> None:
        self.archive = archive
        self.state_dict = state_dict
        self.check_crc = check_crc
        self._files = Files()
        self._kept: dict[str, torch.UntypedStorage] = {}
        self._left = Counter(s for key in state_dict.tree.specs for s in self._storages(key))
        self._asked: set[str] = set()

    def _storages(self, key: str) -> set[str]:
        recipe = self.state_dict.recipes.get(key)
        specs = [self.state_dict.tree[key], *(recipe.parts.values() if recipe else ())]
        return {s.storage for s in specs if s.storage}

    def __call__(self, key: str) -> torch.Tensor:
        """Raises CorruptCheckpointError for a bad checksum, ReadError for what torch cannot express."""
        spec = self.state_dict.tree[key]
        recipe = self.state_dict.recipes.get(key)
        try:
            if recipe is None:
                return self._view(key, spec)
            return self._composite(key, spec, recipe)
        finally:
            self._release(key)

    def close(self) -> None:
        """Close the files and forget shared storages."""
        self._files.close()
        self._kept.clear()

    def _release(self, key: str) -> None:
        if key in self._asked:
            return
        self._asked.add(key)
        for storage in self._storages(key):
            self._left[storage] -= 1
            if not self._left[storage]:
                self._kept.pop(storage, None)

    def _view(self, key: str, spec: TensorSpec) -> torch.Tensor:
        import torch

        dtype = self._dtype(key, spec.dtype)
        if spec.layout == "meta":
            return torch.empty(spec.shape, dtype=dtype, device="meta")
        storage = self._storage(key, spec.storage, spec.dtype)
        strides = spec.strides if spec.strides is not None else contiguous(spec.shape)
        return torch.empty(0, dtype=dtype).set_(storage, spec.offset, spec.shape, strides)

    def _dtype(self, key: str, name: str) -> torch.dtype:
        import torch

        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise self._refused(key, f"is of dtype {name}, which torch {torch.__version__} does not have")
        return dtype

    def _refused(self, key: str, what: str) -> ReadError:
        return ReadError(f"{show(self.archive.path)}: tensor {show(key)!r} {what}")

    def _storage(self, key: str, storage_id: str, dtype: str) -> torch.UntypedStorage:
        kept = self._kept.get(storage_id)
        if kept is not None:
            return kept
        ref = self.archive.storages[storage_id]
        storage = self._read(ref)
        if ref.byteorder != sys.byteorder and element_size(ref.dtype) > 1:
            storage.byteswap(self._dtype(key, ref.dtype))  # type: ignore[no-untyped-call]
        elif ref.byteorder != sys.byteorder and element_size(dtype) > 1:
            raise self._refused(key, f"was saved by a {ref.byteorder}-endian machine without saying as what")
        if self._left[storage_id] > 1 or key in self._asked:
            self._kept[storage_id] = storage
        return storage

    def _read(self, ref: StorageRef) -> torch.UntypedStorage:
        import torch

        storage: torch.UntypedStorage = torch.UntypedStorage(ref.nbytes)  # type: ignore[no-untyped-call]
        if not ref.nbytes:
            return storage
        memory = (ctypes.c_char * ref.nbytes).from_address(storage.data_ptr())
        if not fill(self._files, ref, memoryview(memory).cast("B"), check=self.check_crc):
            raise self._bad_crc(ref)
        return storage

    def _bad_crc(self, ref: StorageRef) -> CorruptCheckpointError:
        specs = self.state_dict.tree.specs
        keys = [k for k in specs if any(self.archive.storages[s] is ref for s in self._storages(k))]
        return CorruptCheckpointError(
            f"{show(ref.file)}: the bytes of {listing(keys)} (member {show(ref.member)!r}) do not fit their "
            "checksum, they changed after saving; download or copy the file again",
            [bad_crc(ref.file, [ref.member], keys)],
        )

    def _composite(self, key: str, spec: TensorSpec, recipe: Recipe) -> torch.Tensor:
        from ckptdoctor.formats.composites import build

        parts = {role: self._view(key, part) for role, part in recipe.parts.items()}
        plain = self._view(key, spec) if spec.storage else None
        try:
            return build(recipe, spec, plain, parts, self._dtype(key, spec.dtype))
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError, NotImplementedError) as error:
            raise self._refused(key, f"({recipe.kind}) cannot be put together: {show(error, 160)}") from None


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements, as torch counts them."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def numbers(value: Any) -> Any:
    """A plain number or list of numbers; raises ValueError for anything else."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [numbers(v) for v in value]
    raise ValueError("it holds something that is no number")
