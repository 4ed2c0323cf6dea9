"""Everything that writes a file, in one list: each is killed, starved and raced in ``test_crash.py``.

To add one (a checkpoint writer, say): a function of the folder that makes or replaces ``out``, and what the
complete file holds. It must be repeatable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(30, 40)
        self.norm = nn.BatchNorm1d(40)
        self.head = nn.Linear(40, 7)


def values(seed: int = 1) -> dict[str, torch.Tensor]:
    """A trained state dict."""
    made = torch.Generator().manual_seed(seed)
    state = Net().state_dict()
    return {k: torch.randn(v.shape, generator=made).to(v.dtype) for k, v in state.items()}


def prepare(folder: Path, seed: int = 1) -> None:
    """A checkpoint under DataParallel, a reference with the model's own names, and a plan between them."""
    import ckptdoctor
    from ckptdoctor.plan import to_toml

    torch.save({f"module.{k}": v for k, v in values(seed).items()}, folder / "in.pth")
    whole = {"epoch": 3, "model": torch.load(folder / "in.pth"), "rest": [1]}
    torch.save(whole, folder / "whole.pth")
    torch.save(Net().state_dict(), folder / "reference.pth")
    plan = ckptdoctor.plan(str(folder / "reference.pth"), folder / "in.pth")
    (folder / "plan.toml").write_text(to_toml(plan))


def command(*args: str) -> Callable[[Path], None]:
    """A run of the command line in the folder."""

    def run(folder: Path) -> None:
        from ckptdoctor.cli import main

        try:
            main([a.replace("@", str(folder) + "/") for a in args])
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(f"exit {stop.code}") from None

    return run


def over_the_input(folder: Path) -> None:
    """The output is the input."""
    import ckptdoctor

    plan = ckptdoctor.plan(str(folder / "reference.pth"), folder / "in.pth")
    ckptdoctor.apply(plan, folder / "in.pth", out=folder / "in.pth")


def enveloped(folder: Path) -> None:
    """The file has an envelope, which is kept."""
    import ckptdoctor

    plan = ckptdoctor.plan(str(folder / "reference.pth"), folder / "whole.pth")
    ckptdoctor.apply(plan, folder / "whole.pth", out=folder / "out.pth", keep_envelope=True)


@dataclass(frozen=True)
class Operation:
    """``run(folder)`` makes ``out`` from the files of ``prepare``."""

    run: Callable[[Path], None]
    out: str


OPERATIONS: dict[str, Operation] = {
    "repair to .pth": Operation(command("repair", "@reference.pth", "@in.pth", "-o", "@out.pth"), "out.pth"),
    "repair to .safetensors": Operation(
        command("repair", "@reference.pth", "@in.pth", "-o", "@out.safetensors"), "out.safetensors"
    ),
    "repair, keeping the envelope": Operation(enveloped, "out.pth"),
    "apply": Operation(command("apply", "@plan.toml", "@in.pth", "-o", "@out.pth"), "out.pth"),
    "apply over the input": Operation(over_the_input, "in.pth"),
}


def complete(path: Path, seed: int = 1) -> bool:
    """Whether the file is exactly what it should be."""
    from safetensors.torch import load_file

    found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    want = values(seed)
    found = found.get("model", found)
    return set(found) == set(want) and all(torch.equal(found[k], v) for k, v in want.items())
