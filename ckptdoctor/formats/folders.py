"""A folder given in place of a file: the one checkpoint in it, or what it is instead."""

from __future__ import annotations

import os

from ckptdoctor.errors import ReadError, UnknownFormatError
from ckptdoctor.formats.words import listing, show

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".pt.tar", ".pkl")
NOT_WEIGHTS = (
    "training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states", "tokenizer",
)  # fmt: skip


def checkpoint_in(folder: str) -> str:
    """The path of the shard index in `folder`, or of its one checkpoint file.

    Raises UnknownFormatError when there is none, or several to choose from (they are named).
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ReadError(f"{show(folder)}: cannot be listed ({error.strerror})") from error
    _refuse_other_folders(folder, names)
    found = [n for n in names if n.endswith(".index.json")] or [
        n for n in names if n.endswith(SUFFIXES) and not n.startswith(NOT_WEIGHTS)
    ]
    if len(found) == 1:
        return os.path.join(folder, found[0])
    if not found:
        raise UnknownFormatError(f"{show(folder)}: a folder without a checkpoint in it; give the file itself")
    raise UnknownFormatError(
        f"{show(folder)}: a folder with {len(found)} checkpoints ({listing(found)}); give one of them, "
        f"for example {show(os.path.join(folder, found[0]))}"
    )


def _refuse_other_folders(folder: str, names: list[str]) -> None:
    """Name the formats that are folders and are not read here, with their own converters."""
    at = show(folder)
    if ".metadata" in names or any(n.endswith(".distcp") for n in names):
        raise UnknownFormatError(
            f"{at}: a distributed checkpoint (DCP folder); convert it first: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {at} checkpoint.pth"
        )
    if "zero_to_fp32.py" in names or any(n.endswith("_optim_states.pt") for n in names):
        raise UnknownFormatError(
            f"{at}: a DeepSpeed checkpoint in parts; join them first: "
            f"python zero_to_fp32.py {at} checkpoint.pth"
        )
    if "saved_model.pb" in names or any(".ckpt.data-" in n or n.endswith(".ckpt.index") for n in names):
        raise UnknownFormatError(f"{at}: a TensorFlow checkpoint; convert it with the tools of TensorFlow")
    if "data.pkl" in names and "version" in names:
        raise UnknownFormatError(
            f"{at}: an unpacked torch zip; pack it again: "
            f"cd {at}/.. && zip -0 -r checkpoint.pth {os.path.basename(at)}"
        )
