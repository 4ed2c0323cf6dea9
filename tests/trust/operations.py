"""Everything that writes a file, in one list: each is killed, starved and raced in ``test_crash.py``.

To add one (a checkpoint writer, say): a function of the folder that makes or replaces ``out``, and a check that
the file is complete. It must be repeatable.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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


def trained() -> tuple[Net, torch.optim.Optimizer]:
    """A model that has these values, and an optimizer with a state."""
    model = Net()
    model.load_state_dict(values())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    return model, optimizer


def saving(name: str, **options: Any) -> Callable[[Path], None]:
    """A ``save_checkpoint`` of everything that a training has; of the model alone for safetensors."""

    def run(folder: Path) -> None:
        from ckptdoctor import save_checkpoint

        model, optimizer = trained()
        more = () if name.endswith(".safetensors") else (optimizer,)
        save_checkpoint(folder / name, model, *more, **options).wait()

    return run


def lock(folder: Path) -> None:
    """The tree of a model, as ``ckptdoctor lock`` writes it."""
    from ckptdoctor import snapshot
    from ckptdoctor.contract.propose import write_text
    from ckptdoctor.targets.treefile import write_tree

    write_text(folder / "net.tree", write_tree(snapshot(Net())))


@cache
def older() -> dict[str, bytes]:
    """What two earlier epochs saved."""
    from ckptdoctor import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        for epoch in (1, 2):
            save_checkpoint(Path(folder, "last_{epoch}.pth"), *trained(), epoch=epoch)
        return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


@cache
def project() -> dict[str, bytes]:
    """A project whose model was renamed since its release, with the tree of the new one locked."""
    from ckptdoctor.contract.write import write_locks

    life = Path(__file__).parents[2] / "fixtures" / "lifecycle"
    with tempfile.TemporaryDirectory() as folder:
        for part in (life / "start", life / "prs" / "renamed"):
            shutil.copytree(part, folder, dirs_exist_ok=True)
        write_locks(Path(folder))
        shutil.rmtree(Path(folder, ".ckptdoctor_cache"))
        return {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()
        }


def migrate(folder: Path) -> None:
    """The migration that is missing; the model itself is built by the first run of a test alone."""
    with contextlib.chdir(folder):
        command("migrate", "--write")(folder)


def holds(path: Path, seed: int = 1) -> bool:
    """Whether the file is exactly the state dict that it should be."""
    from safetensors.torch import load_file

    found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return same(found, seed)


def same(found: Any, seed: int = 1) -> bool:
    """Whether a state dict has all values."""
    want = values(seed)
    return set(found) == set(want) and all(torch.equal(found[k], v) for k, v in want.items())


def inside(path: Path) -> bool:
    """The state dict in its envelope."""
    return same(torch.load(path, weights_only=True)["model"])


def resumable(path: Path) -> bool:
    """Weights and the optimizer's momentum."""
    found = torch.load(path, weights_only=True)
    momenta = [s["momentum_buffer"] for s in found["optimizer"]["state"].values()]
    return same(found["state_dict"]) and len(momenta) == len(list(Net().parameters()))


def sharded(index: Path) -> bool:
    """All shards that the index names, together."""
    import json

    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for name in set(json.loads(index.read_text())["weight_map"].values()):
        found |= load_file(index.with_name(name))
    return same(found)


def readable_plan(path: Path) -> bool:
    """A plan that reads back."""
    from ckptdoctor.plan import from_toml

    return from_toml(path.read_text()).result.loaded == len(values())


def program(path: Path) -> bool:
    """A whole program."""
    import ast

    return "__main__" in path.read_text() and ast.parse(path.read_text()) is not None


def report(path: Path) -> bool:
    """A whole report."""
    import json

    return bool(json.loads(path.read_text())["diagnostics"])


def tree(path: Path) -> bool:
    """A whole lock."""
    from ckptdoctor import snapshot
    from ckptdoctor.targets.treefile import read_tree

    return read_tree(path.read_text(), "net.tree").digest == snapshot(Net()).digest


def migrated(head: Path) -> bool:
    """The release loads by the migrations, which end in this head."""
    from ckptdoctor.contract import check_project

    report = check_project(head.parents[3], build=False)
    return not report.diagnostics and [row.verdict for row in report.rows] == ["migratable"]


@dataclass(frozen=True)
class Operation:
    """``run(folder)`` makes ``out`` from the files of ``prepare`` and of ``inputs``, by their paths.

    ``beside`` it others, without which ``out`` is nothing; then those of ``removes`` are removed.
    """

    run: Callable[[Path], None]
    out: str
    complete: Callable[[Path], bool] = holds
    beside: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    inputs: Callable[[], dict[str, bytes]] = dict
    replaces: bool = True  # an ``out`` that is there

    @property
    def makes(self) -> tuple[str, ...]:
        """All that is there afterwards and was not before."""
        return (self.out, *self.beside)


MIGRATIONS = "ckpt/migrations/net"
SHARDS = tuple(f"out-0000{n}-of-00002.safetensors" for n in (1, 2))

OPERATIONS: dict[str, Operation] = {
    "repair to .pth": Operation(command("repair", "@reference.pth", "@in.pth", "-o", "@out.pth"), "out.pth"),
    "repair to .safetensors": Operation(
        command("repair", "@reference.pth", "@in.pth", "-o", "@out.safetensors"), "out.safetensors"
    ),
    "repair, keeping the envelope": Operation(enveloped, "out.pth", inside),
    "repair to shards": Operation(
        command(
            "repair", "@reference.pth", "@in.pth", "-o", "@out.safetensors", "--max-shard-size", "4800"
        ),
        "out.safetensors.index.json", sharded, SHARDS, replaces=False,
    ),
    "apply": Operation(command("apply", "@plan.toml", "@in.pth", "-o", "@out.pth"), "out.pth"),
    "apply over the input": Operation(over_the_input, "in.pth"),
    "save_checkpoint": Operation(saving("last.pth", epoch=3), "last.pth", resumable),
    "save_checkpoint in the background": Operation(
        saving("last.pth", epoch=3, asynchronous=True), "last.pth", resumable
    ),
    "save_checkpoint that removes older files": Operation(
        saving("last_{epoch}.pth", epoch=3, keep=1), "last_3.pth", resumable,
        removes=("last_1.pth", "last_2.pth"), inputs=older,
    ),
    "save_checkpoint to .safetensors": Operation(saving("last.safetensors"), "last.safetensors"),
    "strip": Operation(command("strip", "@in.pth", "-o", "@out.pth"), "out.pth"),
    "lint --fix": Operation(command("repair", "@in.pth", "--lint-fix", "-o", "@out.pth"), "out.pth"),
    "plan": Operation(command("plan", "@reference.pth", "@in.pth", "-o", "@new.toml"), "new.toml", readable_plan),
    "plan as a program": Operation(
        command("plan", "@reference.pth", "@in.pth", "--format", "python", "-o", "@fix.py"), "fix.py", program
    ),
    "a report": Operation(
        command("diagnose", "@reference.pth", "@in.pth", "--format", "json", "--exit-zero", "-o", "@found.json"),
        "found.json", report,
    ),
    "lock": Operation(lock, "net.tree", tree),
    "migrate --write": Operation(
        migrate, f"{MIGRATIONS}/head", migrated, (f"{MIGRATIONS}/0001-stages.toml",), inputs=project
    ),
}  # fmt: skip
