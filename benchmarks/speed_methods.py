"""What is measured: each function does one work in a fresh process and returns the seconds it took.

``data`` is the folder of ``speed_data``; imports and the building of models are outside of the time unless
the work says "whole process".
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Method = Callable[[Path], float]


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _decoder(data: Path, meta: bool = False) -> Any:
    import torch

    from benchmarks.speed_data import shape
    from benchmarks.speed_models import Decoder, built

    if meta:
        with torch.device("meta"):
            return Decoder(**shape(data))
    model = built(Decoder, **shape(data))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()  # touch the memory, as real values would
    return model


# Headers


def specs_torch(data: Path) -> float:
    import torch

    return timed(lambda: torch.load(data / "keys.pth", mmap=True, weights_only=True))


def specs_ours(data: Path) -> float:
    import ckptdoctor

    ckptdoctor.inspect(data / "small.pth")
    return timed(lambda: ckptdoctor.inspect(data / "keys.pth"))


def specs_ours_made(data: Path) -> float:
    """With an object for each spec, which `inspect` makes for those that are asked for."""
    import ckptdoctor

    def work() -> list[Any]:
        archive = ckptdoctor.inspect(data / "keys.pth")
        return [spec.shape for state_dict in archive.state_dicts for spec in state_dict.tree.specs.values()]

    ckptdoctor.inspect(data / "small.pth")
    return timed(work)


def legacy_torch(data: Path) -> float:
    import torch

    return timed(lambda: torch.load(data / "legacy.pth", weights_only=True))


def legacy_ours(data: Path) -> float:
    import ckptdoctor

    ckptdoctor.inspect(data / "small.pth")
    return timed(lambda: ckptdoctor.inspect(data / "legacy.pth"))


def align_ours(data: Path) -> float:
    import ckptdoctor

    ckptdoctor.diagnose(ckptdoctor.inspect(data / "small.pth").state_dicts[0].tree, data / "small.pth")
    reference = ckptdoctor.inspect(data / "keys_target.pth").state_dicts[0].tree
    return timed(lambda: ckptdoctor.diagnose(reference, data / "keys.pth"))


PARTS = {
    "attn.q": ("self_attn.q_proj", (64, 64)),
    "attn.k": ("self_attn.k_proj", (64, 64)),
    "attn.v": ("self_attn.v_proj", (64, 64)),
    "attn.o": ("self_attn.o_proj", (64, 64)),
    "mlp.up": ("mlp.fc1", (256, 64)),
    "mlp.down": ("mlp.fc2", (64, 256)),
    "norm1": ("input_norm", (64,)),
    "norm2": ("post_norm", (64,)),
}


def _trees_ours(count: int, prefix: str = "", renamed: bool = False) -> float:
    """``diagnose`` of that many keys in blocks of eight, once both sides are trees."""
    from ckptdoctor.diagnosis import examine
    from ckptdoctor.formats import quiet_gc
    from ckptdoctor.formats.base import Archive, StateDict
    from ckptdoctor.targets import Target
    from ckptdoctor.trees import ParamTree, TensorSpec

    def tree(head: str, new: bool, blocks: int) -> ParamTree:
        rows = [(name if new else old, TensorSpec(shape)) for old, (name, shape) in PARTS.items()]
        return ParamTree({f"{head}.{i}.{part}.weight": spec for i in range(blocks) for part, spec in rows})

    def diagnosed(blocks: int) -> Any:
        source = tree(f"{prefix}layers", False, blocks)
        target = tree("model.blocks" if renamed else "layers", renamed, blocks)
        archive = Archive("many.pth", "zip", "torch zip", 0, (StateDict("", source),), {})
        with quiet_gc():
            return timed(lambda: examine(archive, Target(target, "model")))

    diagnosed(10)  # imports what a diagnosis imports
    return float(diagnosed(count // len(PARTS)))


def trees_10k_ours(data: Path) -> float:
    return _trees_ours(10_000, "module.")


def trees_10k_renamed_ours(data: Path) -> float:
    return _trees_ours(10_000, renamed=True)


def trees_most_ours(data: Path) -> float:
    from benchmarks.speed_data import most_keys

    return _trees_ours(most_keys(data), "module.")


def trees_most_renamed_ours(data: Path) -> float:
    from benchmarks.speed_data import most_keys

    return _trees_ours(most_keys(data), renamed=True)


def experts_ours(data: Path) -> float:
    import ckptdoctor

    reference = ckptdoctor.inspect(data / "experts_target.pth").state_dicts[0].tree
    return timed(lambda: ckptdoctor.diagnose(reference, data / "experts.pth"))


# Loading into a model


def load_torch(data: Path) -> float:
    """From the file that ours reads: not all files in memory are mapped alike fast."""
    model = _decoder(data)
    return timed(lambda: model.load_state_dict(_stripped(data / "ddp.pth", mmap=True)))


def load_ours(data: Path, name: str = "ddp.pth", **kwargs: Any) -> float:
    import ckptdoctor

    _warm(data)
    model = _decoder(data)
    return timed(lambda: ckptdoctor.auto_load(model, data / name, **kwargs))


def load_ours_unverified(data: Path) -> float:
    return load_ours(data, verify=False)


def load_ours_safetensors(data: Path) -> float:
    return load_ours(data, "ddp.safetensors")


def meta_torch(data: Path, mmap: bool = True) -> float:
    model = _decoder(data, meta=True)
    return timed(lambda: model.load_state_dict(_stripped(data / "ddp.pth", mmap=mmap), assign=True))


def meta_torch_private(data: Path) -> float:
    return meta_torch(data, mmap=False)


def meta_ours(data: Path, **kwargs: Any) -> float:
    import ckptdoctor

    _warm(data)
    model = _decoder(data, meta=True)
    return timed(lambda: ckptdoctor.auto_load(model, data / "ddp.pth", **kwargs))


def meta_ours_unverified(data: Path) -> float:
    return meta_ours(data, verify=False)


def meta_ours_private(data: Path) -> float:
    return meta_ours(data, materialise=True)


def meta_ours_private_unverified(data: Path) -> float:
    return meta_ours(data, materialise=True, verify=False)


def flat_torch(data: Path) -> float:
    import torch  # noqa: F401  # so that it is not in the time

    from benchmarks.speed_data import flat_keys
    from benchmarks.speed_models import Flat, built

    model = built(Flat, flat_keys(data))
    # From the file to the model, as auto_load does it.
    return timed(lambda: model.load_state_dict(_stripped(data / "flat.pth", mmap=True), assign=True))


def flat_ours(data: Path) -> float:
    import ckptdoctor
    from benchmarks.speed_data import flat_keys
    from benchmarks.speed_models import Flat, built

    _warm(data)
    model = built(Flat, flat_keys(data))
    return timed(lambda: ckptdoctor.auto_load(model, data / "flat.pth"))


def _warm(data: Path) -> None:
    """Import everything that a load imports."""
    import ckptdoctor
    from benchmarks.speed_models import Decoder

    ckptdoctor.auto_load(Decoder(8, 1, 10), data / "small.pth")


# Writing files; the new file is removed outside of the time


def _written(data: Path, suffix: str, write: Callable[[Path], Any]) -> float:
    out = data / f"out-{os.getpid()}{suffix}"
    if hasattr(os, "sync"):
        os.sync()  # what the method before has left to be written is not this one's work
    try:
        return timed(lambda: write(out))
    finally:
        out.unlink(missing_ok=True)


def _copied(data: Path, name: str, sync: bool = False) -> float:
    import subprocess

    def copy(out: Path) -> None:
        subprocess.run(["cp", "--reflink=never", data / name, out], check=True)
        if sync:
            subprocess.run(["sync", out], check=True)

    if shutil.which("cp") is None:
        return _written(data, ".pth", lambda out: shutil.copyfile(data / name, out))
    return _written(data, ".pth", copy)


def cp(data: Path) -> float:
    return _copied(data, "ddp.pth")


def cp_sync(data: Path) -> float:
    return _copied(data, "ddp.pth", sync=True)


def cp_fused(data: Path) -> float:
    return _copied(data, "fused.pth")


def cp_fused_sync(data: Path) -> float:
    return _copied(data, "fused.pth", sync=True)


def _stripped(path: Path, **kwargs: Any) -> dict[str, Any]:
    import torch

    state = torch.load(path, weights_only=True, **kwargs)
    return {key.removeprefix("module."): value for key, value in state.items()}


def rewrite_torch(data: Path, name: str = "ddp.pth", **kwargs: Any) -> float:
    import torch

    return _written(data, ".pth", lambda out: torch.save(_stripped(data / name, **kwargs), out))


def rewrite_torch_mmap(data: Path) -> float:
    return rewrite_torch(data, mmap=True)


def rewrite_tiny_torch(data: Path) -> float:
    return rewrite_torch(data, "tiny.pth")


def rewrite_safetensors(data: Path) -> float:
    from safetensors.torch import load_file, save_file

    def write(out: Path) -> None:
        state = load_file(data / "ddp.safetensors")
        save_file({key.removeprefix("module."): value for key, value in state.items()}, out)

    return _written(data, ".safetensors", write)


def _rewrite(data: Path, source: str, target: str, suffix: str, verify: bool) -> float:
    import ckptdoctor
    from ckptdoctor import api

    if verify:
        import torch  # noqa: F401  # so that it is not in the time
    small = ckptdoctor.inspect(data / "small.pth").state_dicts[0].tree  # imports what a repair imports
    warm = ckptdoctor.diagnose(small, data / "small.pth")
    _written(data, suffix, lambda out: api.write_diagnosed(warm, out, verify=verify))
    tree = ckptdoctor.inspect(data / target).state_dicts[0].tree
    found = ckptdoctor.diagnose(tree, data / source)
    return _written(data, suffix, lambda out: api.write_diagnosed(found, out, verify=verify))


def _unsynced(work: Method, data: Path) -> float:
    """Without writing to the disk, as `cp` does without it; it is taken out of this process only."""
    from ckptdoctor.writers import writeback

    os.fsync = lambda descriptor: None
    writeback.begin = lambda descriptor, offset, nbytes: None
    return work(data)


def rewrite_ours(data: Path) -> float:
    return _rewrite(data, "ddp.pth", "plain.pth", ".pth", False)


def rewrite_ours_unsynced(data: Path) -> float:
    return _unsynced(rewrite_ours, data)


def rewrite_ours_verified(data: Path) -> float:
    return _rewrite(data, "ddp.pth", "plain.pth", ".pth", True)


def to_safetensors_ours(data: Path) -> float:
    return _rewrite(data, "ddp.pth", "plain.pth", ".safetensors", False)


def to_safetensors_ours_unsynced(data: Path) -> float:
    return _unsynced(to_safetensors_ours, data)


def safetensors_ours(data: Path) -> float:
    return _rewrite(data, "ddp.safetensors", "plain.pth", ".safetensors", False)


def safetensors_ours_unsynced(data: Path) -> float:
    return _unsynced(safetensors_ours, data)


def safetensors_ours_verified(data: Path) -> float:
    return _rewrite(data, "ddp.safetensors", "plain.pth", ".safetensors", True)


def rewrite_tiny_ours(data: Path) -> float:
    return _rewrite(data, "tiny.pth", "tiny_target.pth", ".pth", False)


def rewrite_tiny_ours_verified(data: Path) -> float:
    return _rewrite(data, "tiny.pth", "tiny_target.pth", ".pth", True)


def tiny_to_safetensors_ours(data: Path) -> float:
    return _rewrite(data, "tiny.pth", "tiny_target.pth", ".safetensors", False)


def split_ours(data: Path) -> float:
    import torch  # noqa: F401  # so that it is not in the time

    return _rewrite(data, "fused.pth", "plain.pth", ".pth", False)


def split_ours_unsynced(data: Path) -> float:
    return _unsynced(split_ours, data)
