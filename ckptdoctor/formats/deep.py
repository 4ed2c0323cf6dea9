"""The checks that read every byte: checksums of a zip's members, NaN and infinity in its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import ReadError
from ckptdoctor.formats.base import Archive, StateDict, StorageRef
from ckptdoctor.formats.blobs import Files, crc_fits
from ckptdoctor.formats.findings import bad_crc, non_finite
from ckptdoctor.formats.source import FileSource
from ckptdoctor.formats.words import show
from ckptdoctor.formats.zip_directory import DEFLATED, Directory
from ckptdoctor.formats.zip_members import Member

if TYPE_CHECKING:
    import torch

FLOATS = ("float", "bfloat", "complex")


def check(archive: Archive) -> list[Diagnostic]:
    """CKD405 for members whose CRC-32 does not fit, CKD406 for each tensor with NaN or infinity.

    Reads the whole file. A zip whose members all lack checksums (torch can leave them out) passes.
    Raises ReadError if the file cannot be read any more, or if torch is missing.
    """
    found = []
    for path in archive.files:
        bad = bad_members(path)
        if bad:
            found.append(bad_crc(path, bad, _keys_of(archive, path, set(bad))))
    seen: set[tuple[object, ...]] = set()
    for state_dict in archive.state_dicts:
        found += list(_non_finite(archive, state_dict, seen))
    return found


def bad_members(path: str) -> list[str]:
    """Names of the zip members whose checksum does not fit; [] for files that are no zip."""
    with FileSource(path) as source:
        if source.some(0, 2) != b"PK":
            return []
        directory = Directory(source)
        members = [m for m in directory.members.values() if m.size]
        if not any(m.crc for m in members):
            return []
        refs = [_ref(source.path, directory, m) for m in members]
    files = Files()
    try:
        return [ref.member for ref in refs if not crc_fits(files, ref)]
    finally:
        files.close()


def _ref(path: str, directory: Directory, member: Member) -> StorageRef:
    directory.check_readable(member)
    return StorageRef(
        path,
        directory.data_offset(member),
        member.size,
        "uint8",
        "cpu",
        "deflate" if member.method == DEFLATED else "",
        member.crc,
        member.packed if member.method == DEFLATED else 0,
        member=member.name,
    )


def _keys_of(archive: Archive, path: str, members: set[str]) -> list[str]:
    keys: dict[str, None] = {}
    for state_dict in archive.state_dicts:
        for key, spec in state_dict.tree.specs.items():
            ref = archive.storages.get(spec.storage)
            if ref is not None and ref.file == path and ref.member in members:
                keys[key] = None
    return list(keys)


def _non_finite(
    archive: Archive, state_dict: StateDict, seen: set[tuple[object, ...]]
) -> Iterator[Diagnostic]:
    try:
        from ckptdoctor.formats.tensors import TensorReader

        reader = TensorReader(archive, state_dict, check_crc=False)
        import torch  # noqa: F401  # only whether it is there
    except ImportError:
        raise ReadError(
            f"{show(archive.path)}: reading values needs torch; pip install 'ckptdoctor[torch]'"
        ) from None
    prefix = f"{state_dict.path}." if state_dict.path else ""
    for key, spec in state_dict.tree.specs.items():
        where = (spec.storage, spec.offset, spec.shape, spec.strides, spec.dtype)
        if not spec.dtype.startswith(FLOATS) or (spec.storage and where in seen):
            continue
        seen.add(where)
        nans, infs = _count(reader(key))
        if nans or infs:
            yield non_finite(archive.path, prefix + key, nans, infs, spec.numel)


def _count(tensor: torch.Tensor) -> tuple[int, int]:
    """Elements that are NaN, elements that are infinite. Low precisions are compared as float32."""
    import torch

    if tensor.is_meta or tensor.is_quantized:
        return 0, 0
    if tensor.layout != torch.strided:
        tensor = tensor.values() if tensor.layout != torch.sparse_coo else tensor._values()
    if tensor.dtype.itemsize == 1:
        if not hasattr(tensor, "float") or "float4" in str(tensor.dtype):
            return 0, 0
        tensor = tensor.float()
    if tensor.dtype == torch.complex32:
        tensor = tensor.to(torch.complex64)
    return int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
