"""Values: one tensor of a state dict at a time, as a torch tensor on the CPU. torch is imported lazily."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from ckptdoctor.columns import tally
from ckptdoctor.errors import CorruptCheckpointError, ReadError
from ckptdoctor.formats.base import Archive, Recipe, StateDict, StorageRef
from ckptdoctor.formats.blobs import Files, crc_fits, fill, mapped_crc_fits
from ckptdoctor.formats.findings import bad_crc
from ckptdoctor.formats.lazy import LazySpecs
from ckptdoctor.formats.mapping import STEP, can_map, is_local
from ckptdoctor.formats.parallel import in_threads, together
from ckptdoctor.formats.spans import Span, span_of, whole_spans
from ckptdoctor.formats.views import element_size
from ckptdoctor.formats.whole import Whole, whole_tensors
from ckptdoctor.formats.words import listing, show
from ckptdoctor.trees import TensorSpec

if TYPE_CHECKING:
    import torch


class TensorReader:
    """``reader(key)`` gives the tensor of `key`; keys that share a storage share memory.

    The tensors are private copies, so the file may change or go away afterwards; a storage that several
    keys use is kept until the last of them was asked for. With `mapped` they are the file itself, mapped
    copy-on-write (see `formats.mapping`), wherever its bytes can be used as they are. With `check_crc`
    the zip's checksums are verified before a tensor is given.
    """

    steady = True  # nobody else writes to the tensors it gave

    def __init__(
        self, archive: Archive, state_dict: StateDict, *, check_crc: bool = True, mapped: bool = False
    ) -> None:
        self.archive = archive
        self.state_dict = state_dict
        self.check_crc = check_crc
        self.mapped = mapped
        self._specs = state_dict.tree.specs
        self._dtypes: dict[str, torch.dtype] = {}
        self._files = Files(archive.stamps)
        self._kept: dict[str, torch.UntypedStorage] = {}
        self._asked: set[str] = set()
        self._again = ""  # the storage that was read for a second time last
        self._checked: set[str] = set()  # storages whose checksum was found to fit

    @cached_property
    def _users(self) -> Counter[str]:
        """How many keys use each storage."""
        if isinstance(self._specs, LazySpecs) and not self.state_dict.recipes:
            return tally(self._specs.storages)
        return tally(s for key in self._specs for s in self._storages(key))

    @cached_property
    def _whole(self) -> dict[str, Whole]:
        """The usual tensors, where the file is mapped."""
        if not self.mapped:
            return {}
        import torch

        found = whole_tensors(self.archive, self.state_dict, self._users, sys.byteorder)
        dtypes = {name: getattr(torch, name, None) for name in {whole.kind.dtype for whole in found.values()}}
        self._dtypes |= {name: dtype for name, dtype in dtypes.items() if isinstance(dtype, torch.dtype)}
        maps = {file: self._files.mapped(file) for file in {whole.file for whole in found.values()}}
        if dtypes.keys() <= self._dtypes.keys() and None not in maps.values():
            return found
        return {k: w for k, w in found.items() if w.kind.dtype in self._dtypes and maps[w.file] is not None}

    @cached_property
    def _left(self) -> Counter[str]:
        """How many of them were not asked for yet."""
        return Counter(self._users)

    def again(self) -> TensorReader:
        """A reader that reads anew, for a short time. Checksums that fitted stay so; what is mapped is the
        same memory, and what was read privately is compared with the mapped file where that is local.
        """
        mapped = self.mapped or False not in [is_local(path) for path in self.archive.files]
        other = TensorReader(self.archive, self.state_dict, check_crc=self.check_crc, mapped=mapped)
        other._files, other._checked = self._files, self._checked
        other._dtypes = self._dtypes
        if "_users" in vars(self):  # a repair asks nobody for them
            other._users = self._users
        if mapped == self.mapped and "_whole" in vars(self):
            other._whole = self._whole
        return other

    def prepare(self, keys: Iterable[str]) -> None:
        """Read or verify what can be before the first call, several storages at a time."""
        (self.check if self.mapped else self.read_ahead)(keys)

    def check(self, keys: Iterable[str]) -> None:
        """Verify the checksums of all that `keys` need, several at a time.

        Raises CorruptCheckpointError naming the keys, ReadError if the file cannot be read.
        """
        if not self.check_crc:
            return
        names = dict.fromkeys(s for key in keys for s in self._storages(key))
        refs = {s: self.archive.storages[s] for s in names if s not in self._checked}
        due = [(s, ref) for s, ref in refs.items() if ref.crc is not None]
        for _, ref in due:  # opened here: `Files` is not made for several threads
            self._files.mapped(ref.file)
        parts = list(together(due, lambda one: one[1].nbytes, STEP))
        for part, fits in zip(
            parts, in_threads(self._all_fit, parts, sum(r.nbytes for _, r in due)), strict=True
        ):
            for (name, ref), good in zip(part, fits, strict=True):
                if not good:
                    raise self._bad_crc(ref)
                self._checked.add(name)

    def _all_fit(self, part: list[tuple[str, StorageRef]]) -> list[bool]:
        return [self._fits(ref) for _, ref in part]

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Read the storages of `keys` into private memory, several at a time, for the calls that follow."""
        names = dict.fromkeys(s for key in keys for s in self._storages(key))
        due = [
            s for s in names if s not in self._kept and self.archive.storages[s].byteorder == sys.byteorder
        ]
        refs = [self.archive.storages[s] for s in due]
        for name, storage in zip(due, in_threads(self._read, refs, sum(r.nbytes for r in refs)), strict=True):
            self._kept[name] = storage
            self._checked.add(name)

    def holds(self, key: str, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is exactly the bytes of `key` in the mapped file. False where it only may be."""
        found = self._whole.get(key)
        if found is None:
            return False
        storage, file, offset, kind = found
        memory = self._files.mapped(file)
        return (
            memory is not None
            and tensor.data_ptr() == memory.address + offset
            and tensor.shape == kind.shape
            and tensor.dtype == self._dtypes[kind.dtype]
            and tensor.is_contiguous()
            and not (tensor.is_conj() or tensor.is_neg())
            and (not self.check_crc or storage in self._checked or self.archive.storages[storage].crc is None)
        )

    def lends(self, key: str) -> bool:
        """Whether the tensor of `key` is a whole storage that no other key uses, so that it can be kept."""
        if key in self._whole:
            return True
        spec = self._specs[key]
        return (
            spec.layout == "strided"
            and spec.strides is None
            and self._users[spec.storage] == 1
            and spec.nbytes == self.archive.storages[spec.storage].nbytes > 0
        )

    def span(self, key: str, dtype: str) -> Span | None:
        """Where the bytes of `key` are in a file, if they can be copied as they are; else None."""
        spec = self._specs[key]
        ref = self.archive.storages.get(spec.storage)
        if ref is None or spec.dtype != dtype or key in self.state_dict.recipes:
            return None
        return span_of(spec, ref)

    def spans(self, keys: list[str], dtypes: list[str]) -> list[Span | None]:
        """`span` of each of these keys; all at once where they are whole storages of one zip."""
        found = None
        if not self.state_dict.recipes:
            found = whole_spans(self._specs, keys, dtypes, self.archive.storages)
        return found if found is not None else list(map(self.span, keys, dtypes))

    @property
    def files(self) -> Files:
        """The files that spans are in."""
        return self._files

    def unchanged(self) -> None:
        """Raise ReadError if a file was written since it was inspected."""
        self._files.unchanged()

    def _storages(self, key: str) -> Collection[str]:
        spec, recipe = self._specs[key], self.state_dict.recipes.get(key)
        if recipe is None:
            return (spec.storage,) if spec.storage else ()
        return {s.storage for s in (spec, *recipe.parts.values()) if s.storage}

    def __call__(self, key: str) -> torch.Tensor:
        """Raises CorruptCheckpointError for a bad checksum, ReadError for what torch cannot express."""
        found = self._whole.get(key)
        if found is not None:
            return self._mapped([found])[0]
        spec, recipe = self._specs[key], self.state_dict.recipes.get(key)
        try:
            if recipe is None:
                return self._view(key, spec)
            return self._composite(key, spec, recipe)
        finally:
            self._release(key)

    def all_of(self, keys: Iterable[str]) -> list[torch.Tensor] | None:
        """What a call for each of them gives, at once; None unless all are whole storages of mapped files."""
        known = self._whole
        names = list(keys)
        return self._mapped([known[key] for key in names]) if known.keys() >= set(names) else None

    def _mapped(self, found: Sequence[Whole]) -> list[torch.Tensor]:
        for storage in [w.storage for w in found if w.storage not in self._checked] if self.check_crc else ():
            self._check_once(storage, self.archive.storages[storage])
        maps = {file: self._files.mapped(file) for file in {w.file for w in found}}
        make = {file: memory.tensor for file, memory in maps.items() if memory is not None}
        dtypes = self._dtypes
        flat = [
            make[file](dtype=dtypes[kind.dtype], count=kind.numel, offset=offset)
            for _, file, offset, kind in found
        ]
        # In place and number by number: to view it in its shape takes three times as long.
        return [
            row if len(kind.shape) == 1 else row.resize_(*kind.shape) if kind.shape else row.resize_(())
            for row, (_, _, _, kind) in zip(flat, found, strict=True)
        ]

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
        known = self._dtypes.get(name)
        if known is not None:
            return known
        import torch

        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise self._refused(key, f"is of dtype {name}, which torch {torch.__version__} does not have")
        self._dtypes[name] = dtype
        return dtype

    def _refused(self, key: str, what: str) -> ReadError:
        return ReadError(f"{show(self.archive.path)}: tensor {show(key)!r} {what}")

    def _storage(self, key: str, storage_id: str, dtype: str) -> torch.UntypedStorage:
        kept = self._kept.get(storage_id)
        if kept is not None:
            return kept
        ref = self.archive.storages[storage_id]
        memory = self._memory(storage_id, ref, element_size(dtype))
        if memory is not None:
            return memory
        storage = self._read(ref)
        if ref.byteorder != sys.byteorder and element_size(ref.dtype) > 1:
            storage.byteswap(self._dtype(key, ref.dtype))
        elif ref.byteorder != sys.byteorder and element_size(dtype) > 1:
            raise self._refused(key, f"was saved by a {ref.byteorder}-endian machine without saying as what")
        if self._left[storage_id] > 1:
            self._kept[storage_id] = storage
        elif key in self._asked:  # again and again, as one tensor that is split
            self._kept.pop(self._again, None)
            self._kept[storage_id], self._again = storage, storage_id
        return storage

    def _memory(self, storage_id: str, ref: StorageRef, itemsize: int) -> torch.UntypedStorage | None:
        """The bytes in the mapped file, or None where they have to be read."""
        if not self.mapped or not can_map(ref, max(itemsize, element_size(ref.dtype)), sys.byteorder):
            return None
        file = self._files.mapped(ref.file)
        if file is None:
            return None
        self._check_once(storage_id, ref)
        storage = self._kept[storage_id] = file.storage(ref.offset, ref.nbytes)
        return storage

    def _check_once(self, storage_id: str, ref: StorageRef) -> None:
        if self.check_crc and storage_id not in self._checked:
            if not self._fits(ref):
                raise self._bad_crc(ref)
            self._checked.add(storage_id)

    def _fits(self, ref: StorageRef) -> bool:
        """Whether the checksum fits; True where there is none."""
        mapped = self.mapped and can_map(ref, element_size(ref.dtype), sys.byteorder)
        return mapped_crc_fits(self._files, ref) if mapped else crc_fits(self._files, ref)

    def _read(self, ref: StorageRef) -> torch.UntypedStorage:
        import torch

        storage: torch.UntypedStorage = torch.UntypedStorage(ref.nbytes)
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


def model_reader(
    archive: Archive, state_dict: StateDict, *, lasting: bool, private: bool, check_crc: bool
) -> TensorReader:
    """The reader for a load into a live model; ``lasting`` when the model keeps the reader's memory.

    It maps, but not what is on a network. For a lasting mapping the file has to be known to be local, and
    ``private`` asks for a copy instead.
    """
    known = [is_local(path) for path in archive.files]
    mapped = not private and all(known) if lasting else False not in known
    return TensorReader(archive, state_dict, check_crc=check_crc, mapped=mapped)


@cache
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
