"""The readers to compare, each from a file to ``{path: fingerprint}``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Prints = dict[str, tuple[str, tuple[int, ...], str]]  # path -> dtype, shape, digest of the bits


def fingerprint(tensor: Any) -> tuple[str, tuple[int, ...], str]:
    """Dtype, shape and values."""
    import torch

    dtype, shape = str(tensor.dtype), tuple(tensor.shape)
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
    bits = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return dtype, shape, hashlib.sha256(bits).hexdigest()


def ours(path: str) -> Prints:
    """All state dicts of a file, every value read."""
    from ckptdoctor import inspect
    from ckptdoctor.formats.tensors import TensorReader

    archive, found = inspect(path), {}
    for state_dict in archive.state_dicts:
        read = TensorReader(archive, state_dict)
        for key in state_dict.tree.specs:
            found[f"{state_dict.path}.{key}" if state_dict.path else key] = fingerprint(read(key))
    return found


def torchs(path: str) -> Prints:
    """What torch.load gives, tensors in nested mappings by path."""
    import torch

    value = torch.load(path, map_location="cpu", weights_only=True)
    return dict(_flat("", value))


def _flat(path: str, value: Any, above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield path, fingerprint(value)
    elif isinstance(value, Mapping) and id(value) not in above:  # a mapping may contain itself
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}" if path else str(key), inner, (*above, id(value)))


def safetensorss(path: str) -> Prints:
    """What safetensors gives."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {key: fingerprint(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118  # a safetensors file is no mapping


def peer_of(path: Path) -> str:
    """Which of the two peers is asked about a file."""
    return "safetensors" if path.suffix == ".safetensors" else "torch"


READERS = {"ckptdoctor": ours, "torch": torchs, "safetensors": safetensorss}
