"""The files that are measured, made once in a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

SIZES = {
    # gigabytes of the model, keys of the file of many keys, of the largest trees that are compared, of tiny
    # tensors, of the flat model, experts
    "quick": {"gigabytes": 0.4, "keys": 10_000, "most": 100_000, "tiny": 10_000, "flat": 4_000, "blocks": 12},
    "full": {
        "gigabytes": 2.5,
        "keys": 100_000,
        "most": 1_000_000,
        "tiny": 100_000,
        "flat": 100_000,
        "blocks": 120,
    },
}
WORDS = 8000

MODEL = """
from benchmarks.speed_models import Decoder

def usual():
    return Decoder(dim=64, depth=24, words=1000)
"""


def shape(data: Path) -> dict[str, int]:
    """Arguments of the large model."""
    found: dict[str, int] = json.loads((data / "shape.json").read_text())["model"]
    return found


def most_keys(data: Path) -> int:
    """Keys of the largest trees."""
    return int(json.loads((data / "shape.json").read_text())["most"])


def flat_keys(data: Path) -> int:
    """Keys of the flat model."""
    return int(json.loads((data / "shape.json").read_text())["flat"])


def make(data: Path, size: str) -> None:
    """Write everything that is not there yet; takes a minute or two for the full size."""
    from benchmarks.speed_models import Decoder, Flat, built, depth_for, save, state_of, tiny

    asked = SIZES[size]
    model = {"dim": 2048, "depth": depth_for(float(asked["gigabytes"])), "words": WORDS}
    (data / "shape.json").write_text(
        json.dumps({"model": model, "flat": asked["flat"], "most": asked["most"]})
    )
    (data / "model.py").write_text(MODEL)
    if not (data / "plain.pth").exists():
        state = state_of(built(Decoder, **model))
        save(state, data / "plain.pth")
        wrapped = {f"module.{key}": value for key, value in state.items()}
        save(wrapped, data / "ddp.pth")
        save(wrapped, data / "ddp.safetensors")
        save(wrapped, data / "legacy.pth", legacy=True)
        save(_fused(state), data / "fused.pth")
    save(state_of(Decoder(8, 1, 10), "module."), data / "small.pth")
    save(state_of(Decoder(64, 24, 1000), "module."), data / "usual.pth")
    for name, count in (("keys", int(asked["keys"])), ("tiny", int(asked["tiny"]))):
        rows = tiny(count, 1 if name == "keys" else 32)
        save(rows, data / f"{name}.pth")
        save({k.removeprefix("module."): v for k, v in rows.items()}, data / f"{name}_target.pth")
    save(tiny(1000), data / "thousand.pth")
    save({k.removeprefix("module."): v for k, v in tiny(1000).items()}, data / "thousand_target.pth")
    save(state_of(Flat(int(asked["flat"])), "module."), data / "flat.pth")
    for name, old in (("experts", True), ("experts_target", False)):
        save(_experts(int(asked["blocks"]), old), data / f"{name}.pth")


def _fused(state: dict) -> dict:
    """q, k and v of each block in one tensor, as older code has it; all else as it is."""
    import torch

    made = {}
    for key, value in state.items():
        head, _, tail = key.rpartition(".q.")
        if head:
            made[f"{head}.qkv.{tail}"] = torch.cat([state[f"{head}.{part}.{tail}"] for part in "qkv"])
        elif ".k." not in key and ".v." not in key:
            made[key] = value
    return made


def _experts(blocks: int, old: bool) -> dict:
    """416 keys a block: attention, norms and 136 experts of three tensors."""
    import torch

    names = ("layers", "mlp.experts", "w1", "w2", "w3") if old else ("blocks", "moe", "gate", "down", "up")
    layers, experts, *parts = names
    made = {}
    for block in range(blocks):
        for part in ("attn.q", "attn.k", "attn.v", "attn.o"):
            made[f"{layers}.{block}.{part}.weight"] = torch.zeros(4, 4)
        for norm in ("norm1", "norm2", "norm3", "norm4"):
            made[f"{layers}.{block}.{norm}.weight"] = torch.zeros(4)
        for expert in range(136):
            for part, size in zip(parts, ((8, 4), (4, 8), (8, 4)), strict=True):
                made[f"{layers}.{block}.{experts}.{expert}.{part}.weight"] = torch.zeros(*size)
    return made


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
