"""How files are written from the command line: several of them, unverified, with a line of progress."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pytest
import torch

import ckptdoctor.cli.progress as line
from tests.cli.conftest import Run


@pytest.fixture
def files(here: Path) -> Path:
    state = {f"{i}.weight": torch.full((50, 50), float(i)) for i in range(4)}
    torch.save(state, "model.pth")
    torch.save({f"module.{k}": v for k, v in state.items()}, "ddp.pth")
    return here


def test_shards(run: Run, files: Path) -> None:
    ended = run("repair", "model.pth", "ddp.pth", "-o", "out.safetensors", "--max-shard-size", "20kB")
    assert ended.code == 0, ended.err
    assert "out.safetensors (in 2 parts)" in ended.out
    assert sorted(p.name for p in files.glob("out*")) == [
        "out-00001-of-00002.safetensors",
        "out-00002-of-00002.safetensors",
        "out.safetensors.index.json",
    ]
    index = json.loads((files / "out.safetensors.index.json").read_text())
    assert index["weight_map"]["2.weight"] == "out-00002-of-00002.safetensors"
    assert run("diff", "model.pth", "out.safetensors.index.json").code == 0


def test_a_size_that_is_none(run: Run, files: Path) -> None:
    ended = run("repair", "model.pth", "ddp.pth", "-o", "out.safetensors", "--max-shard-size", "large")
    assert ended.code == 2 and "'large' is no size; write 5GB, 500MB or 2GiB" in ended.err
    assert not list(files.glob("out*"))


@pytest.mark.parametrize("command", ["repair", "apply"])
def test_without_verification(run: Run, files: Path, command: str) -> None:
    run("plan", "model.pth", "ddp.pth", "-o", "plan.toml")
    inputs = ("model.pth", "ddp.pth") if command == "repair" else ("plan.toml", "ddp.pth")
    ended = run(command, *inputs, "-o", "out.pth", "--no-verify")
    assert ended.code == 0 and "not verified, as asked" in ended.out
    assert torch.equal(torch.load("out.pth")["3.weight"], torch.full((50, 50), 3.0))
    assert "verified: strict" in run(command, *inputs, "-o", "other.pth").out


def test_a_pipe_gets_no_progress() -> None:
    with line.progress("writing x") as tell:
        assert tell is None


def test_progress_is_shown_after_a_second_and_taken_away(monkeypatch, capsys) -> None:
    now = time.monotonic()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(line.time, "monotonic", lambda: now)
    with line.progress("writing x.pth") as tell:
        assert tell is not None
        tell(1_000_000, 4_000_000)
        assert capsys.readouterr().err == "", "not before a second"
        now += 1.5
        tell(2_000_000, 4_000_000)
    shown = capsys.readouterr().err
    assert "writing x.pth" in shown and "2.0/4.0 MB" in shown


def test_an_envelope_is_left_out_with_a_word_or_kept(run: Run, files: Path) -> None:
    state = torch.load("ddp.pth")
    rest = {"epoch": 3, "args": argparse.Namespace(lr=1)}
    torch.save({"epoch": 3, "state_dict": state, "args": rest["args"]}, "in.pth")
    for out in ("weights.pth", "weights.safetensors"):
        ended = run("repair", "model.pth", "in.pth", "-o", out)
        assert ended.code == 0 and "note: left out: `epoch`, `args`; --keep-envelope" in ended.out
    ended = run("repair", "model.pth", "in.pth", "-o", "whole.pth", "--keep-envelope")
    assert ended.code == 0 and "note: as in in.pth: `epoch`, `args`" in ended.out, ended.err
    run("plan", "model.pth", "in.pth", "-o", "plan.toml")
    ended = run("apply", "plan.toml", "in.pth", "-o", "again.pth", "--keep-envelope", "--no-verify")
    assert ended.code == 0, ended.err
    for name in ("whole.pth", "again.pth"):
        found = torch.load(name, weights_only=False)
        assert list(found) == ["epoch", "state_dict", "args"]
        assert {"epoch": found["epoch"], "args": found["args"]} == rest
        assert torch.equal(found["state_dict"]["3.weight"], torch.full((50, 50), 3.0))
    ended = run("repair", "model.pth", "in.pth", "-o", "w.safetensors", "--keep-envelope")
    assert ended.code != 0 and "safetensors holds tensors only; name a .pth file" in ended.err
