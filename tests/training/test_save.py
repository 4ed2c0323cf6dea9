"""save_checkpoint: what plain torch loads anywhere, and what a later load needs."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim

import ckptdoctor
from ckptdoctor.api import snapshot
from ckptdoctor.errors import ApplyError
from ckptdoctor.training import background, save
from ckptdoctor.training.resume import auto_resume
from ckptdoctor.training.save import save_checkpoint
from tests.training.zoo import Old, batches, seeded, train


class Compiled(nn.Module):
    """What torch.compile makes of a module, as far as its names go."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner


def inside(model: nn.Module) -> nn.Module:
    """A compiled part in the middle of the names."""
    model.attn = Compiled(model.attn)
    return model


WRAPS = {
    "none": lambda m: m,
    "DataParallel": nn.DataParallel,
    "compile": Compiled,
    "compile of DataParallel": lambda m: Compiled(nn.DataParallel(m)),
    "DataParallel of compile": lambda m: nn.DataParallel(Compiled(m)),
    "compile inside": inside,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_keys_are_bare_whatever_wraps_the_model(tmp_path: Path, wrap: Any) -> None:
    model = wrap(seeded(Old))
    save_checkpoint(tmp_path / "weights.pth", model)
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    plain = seeded(Old, 9)
    plain.load_state_dict(state, strict=True)
    want = list(model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), want, strict=True))
    assert state._metadata["bn"]["version"] == 2


def test_a_child_that_is_called_module_is_no_wrapper(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    save_checkpoint(tmp_path / "a.pth", Own())
    Own().load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True), strict=True)


def test_the_three_schemes_are_three_calls(tmp_path: Path) -> None:
    model = seeded(Old)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = optim.lr_scheduler.StepLR(optimizer, 3)
    train(model, optimizer, batches(2), schedule)
    save_checkpoint(tmp_path / "1.pth", model)
    save_checkpoint(tmp_path / "2.pth", model, meta={"classes": ["a", "b"]})
    save_checkpoint(tmp_path / "3.pth", model, optimizer, schedule, epoch=1, iteration=2)
    first, second, third = (torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in (1, 2, 3))
    assert list(first) == list(model.state_dict())
    assert list(second) == ["meta", "state_dict", "ckptdoctor"] and second["meta"] == {"classes": ["a", "b"]}
    assert third["meta"] == {"epoch": 1, "iteration": 2}
    model.load_state_dict(second["state_dict"], strict=True)
    fresh = optim.SGD(model.parameters(), lr=9.0)
    fresh.load_state_dict(third["optimizer"])
    assert fresh.param_groups[0]["lr"] == 0.1
    schedule.load_state_dict(third["scheduler"])


def test_the_tree_is_recorded_and_a_later_load_is_exact(tmp_path: Path) -> None:
    model = nn.DataParallel(seeded(Old))
    save_checkpoint(tmp_path / "a.pth", model, epoch=1)
    record = torch.load(tmp_path / "a.pth", weights_only=True)["ckptdoctor"]
    assert record["tree"] == snapshot(model.module).digest
    assert record["params"] == [k for k, _ in model.module.named_parameters()]
    found = ckptdoctor.diagnose(seeded(Old, 9), tmp_path / "a.pth")
    assert found.verdict == "repairable" and found.coverage == 1
    assert {step.op for step in found.plan.step} == set()
    save_checkpoint(tmp_path / "b.pth", model)
    assert ckptdoctor.diagnose(seeded(Old, 9), tmp_path / "b.pth").ok


def test_ties_are_kept_and_views_are_not_bloated(tmp_path: Path) -> None:
    model = nn.Module()
    table = torch.randn(50_000)
    model.a, model.b = nn.Linear(4, 4), nn.Linear(4, 4)
    model.b.weight = model.a.weight
    model.register_buffer("view", table[:10])
    model.register_buffer("turned", torch.randn(3, 5).t())
    save_checkpoint(tmp_path / "a.pth", model)
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    assert state["a.weight"].data_ptr() == state["b.weight"].data_ptr()
    assert state["turned"].is_contiguous() and torch.equal(state["turned"], model.turned)
    assert torch.equal(state["view"], model.view)
    assert (tmp_path / "a.pth").stat().st_size < 10_000
    save_checkpoint(tmp_path / "a.safetensors", model)
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "a.safetensors")
    assert set(loaded) == set(state) and all(torch.equal(loaded[k], state[k]) for k in state)


def test_the_optimizer_has_bare_names_in_its_own_order(tmp_path: Path) -> None:
    model = nn.DataParallel(seeded(Old))
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = optim.AdamW([{"params": others}, {"params": weights, "weight_decay": 0.1}])
    save_checkpoint(tmp_path / "a.pth", model, optimizer)
    groups = torch.load(tmp_path / "a.pth", weights_only=True)["optimizer"]["param_groups"]
    names = dict(model.module.named_parameters())
    assert [names[n].dim() < 2 for n in groups[0]["param_names"]] == [True] * len(others)
    assert [id(names[n]) for n in groups[1]["param_names"]] == [id(p) for p in weights]


BAD = {
    "args": (argparse.Namespace(a=1), r"meta\.args is a argparse\.Namespace.*vars\(args\)"),
    "where": (Path("/x"), r"meta\.where is a pathlib\.PosixPath.*str\(path\)"),
    "keys": ({frozenset(): 1}, "has a frozenset as key"),
    "names": (np.array(["a"]), r"meta\.names is a numpy\.ndarray"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_plain_torch_refuses_is_named_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    value, words = BAD[name]
    (tmp_path / "a.pth").write_bytes(b"before")
    with pytest.raises(ApplyError, match=words):
        save_checkpoint(tmp_path / "a.pth", seeded(Old), meta={name: value})
    assert (tmp_path / "a.pth").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_numpy_numbers_become_plain(tmp_path: Path) -> None:
    meta = {"best": np.float64(0.5), "curve": np.arange(3.0), "n": np.int64(7)}
    save_checkpoint(tmp_path / "a.pth", seeded(Old), meta=meta)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)["meta"]
    assert (loaded["best"], loaded["n"]) == (0.5, 7) and type(loaded["n"]) is int
    assert loaded["curve"].tolist() == [0.0, 1.0, 2.0]


def test_safetensors_holds_weights_alone(tmp_path: Path) -> None:
    model = seeded(Old)
    with pytest.raises(ApplyError, match="holds weights alone, not optimizer, epoch"):
        save_checkpoint(tmp_path / "a.safetensors", model, optim.SGD(model.parameters()), epoch=1)
    assert not list(tmp_path.iterdir())


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ApplyError, match="parameters that the model does not"):
        save_checkpoint(tmp_path / "a.pth", seeded(Old), optim.SGD(seeded(Old).parameters()))


def test_a_model_on_meta_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Old()
    with pytest.raises(ApplyError, match="on the meta device"):
        save_checkpoint(tmp_path / "a.pth", model)


def test_the_last_n_are_kept_and_nothing_else_is_touched(tmp_path: Path) -> None:
    model = seeded(Old)
    pattern = tmp_path / "run_{iteration:05d}.pth"
    (tmp_path / "run_00001.pth").write_bytes(b"somebody else's")
    torch.save(model.state_dict(), tmp_path / "run_00002.pth")
    save_checkpoint(tmp_path / "run_best.pth", model, epoch=1)
    for iteration in (10, 20, 30, 40):
        saved = save_checkpoint(pattern, model, iteration=iteration, keep=2)
    assert saved.path.name == "run_00040.pth"
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["run_00001.pth", "run_00002.pth", "run_00030.pth", "run_00040.pth", "run_best.pth"]
    save_checkpoint(pattern, model, iteration=5, keep=2)  # an older one that is written again keeps the newer
    assert {"run_00005.pth", "run_00030.pth", "run_00040.pth"} <= {p.name for p in tmp_path.iterdir()}


def test_keep_needs_a_pattern_and_a_pattern_its_number(tmp_path: Path) -> None:
    with pytest.raises(ApplyError, match=r"keep=3 needs a file name with \{epoch\}"):
        save_checkpoint(tmp_path / "last.pth", seeded(Old), epoch=1, keep=3)
    with pytest.raises(ApplyError, match=r"give iteration="):
        save_checkpoint(tmp_path / "{iteration}.pth", seeded(Old), epoch=1)


def test_in_the_background_it_is_the_state_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = save._write

    def late(*args: Any) -> None:
        go.wait(30)
        write(*args)

    monkeypatch.setattr(save, "_write", late)
    model = seeded(Old)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, batches(2))
    saving = save_checkpoint(tmp_path / "a.pth", model, optimizer, epoch=1, asynchronous=True)
    assert not saving.done and not (tmp_path / "a.pth").exists()
    expected = train(model, optimizer, batches(5)[2:])
    go.set()
    assert saving.wait(30) == tmp_path / "a.pth"
    fresh = seeded(Old, 9)
    other = optim.Adam(fresh.parameters(), lr=0.01)
    auto_resume(tmp_path / "a.pth", fresh, other)
    assert train(fresh, other, batches(5)[2:]) == expected


def test_a_failure_in_the_background_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ApplyError("the disk is full")

    model = seeded(Old)
    monkeypatch.setattr(save, "_write", broken)
    with pytest.raises(ApplyError, match="disk is full"):
        save_checkpoint(tmp_path / "a.pth", model, asynchronous=True).wait()
    unheard = save_checkpoint(tmp_path / "b.pth", model, asynchronous=True)
    while not unheard.done:
        pass
    monkeypatch.undo()
    with pytest.raises(ApplyError, match="disk is full"):
        save_checkpoint(tmp_path / "c.pth", model)
    save_checkpoint(tmp_path / "c.pth", model)
    assert not background._unheard


def test_a_failed_write_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Old)
    save_checkpoint(tmp_path / "a.pth", model, epoch=1)
    before = (tmp_path / "a.pth").read_bytes()

    def half(values: Any, file: Any) -> None:
        file.write(b"half of it")
        raise RuntimeError("interrupted")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(ApplyError):
        save_checkpoint(tmp_path / "a.pth", model, epoch=2)
    assert (tmp_path / "a.pth").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
