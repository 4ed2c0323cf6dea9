"""Models and checkpoints of the sizes that are measured; nothing in them is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """Attention and MLP as in a usual decoder: nine tensors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.o = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, 3 * dim, bias=False)
        self.up = nn.Linear(dim, 3 * dim, bias=False)
        self.down = nn.Linear(3 * dim, dim, bias=False)
        self.norm1 = nn.LayerNorm(dim, bias=False)
        self.norm2 = nn.LayerNorm(dim, bias=False)


class Decoder(nn.Module):
    """``9 * depth + 3`` keys; 13 * dim**2 values a block."""

    def __init__(self, dim: int = 64, depth: int = 2, words: int = 1000) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, words, bias=False)


class Flat(nn.Module):
    """Many small modules in one list, four keys each: the worst case of ``load_state_dict``."""

    def __init__(self, keys: int = 100_000) -> None:
        super().__init__()
        self.items = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(keys // 4))


def depth_for(gigabytes: float, dim: int = 2048) -> int:
    """Blocks of a :class:`Decoder` of about that size in float32."""
    return max(1, round(gigabytes * 1e9 / (13 * dim * dim * 4)))


def built(make: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """The model without random values (memory as it comes), which is all that a copy needs."""
    with torch.device("meta"):
        model: nn.Module = make(*args, **kwargs)
    return model.to_empty(device="cpu")


def state_of(model: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """Random values for every key, some cheap pattern of them, under ``prefix``."""
    pattern = torch.randn(1 << 20)
    state = {}
    for key, tensor in model.state_dict().items():
        times = -(-tensor.numel() // pattern.numel())
        values = pattern.repeat(times)[: tensor.numel()] if times > 1 else pattern[: tensor.numel()]
        state[prefix + key] = values.reshape(tensor.shape).clone()
    return state


def tiny(keys: int, size: int = 32) -> dict[str, torch.Tensor]:
    """That many tensors of ``size`` values each, in blocks, as from DataParallel."""
    values = torch.randn(keys, size)
    return {f"module.blocks.{i // 8}.part{i % 8}.weight": values[i].clone() for i in range(keys)}


def save(state: dict[str, torch.Tensor], path: Path, *, legacy: bool = False) -> Path:
    """Write once; a file that is there already is taken as it is."""
    if not path.exists():
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path
