"""However a command ends: an exit code and words on stderr, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ckptdoctor.cli import inspecting
from tests.cli.conftest import Run
from tests.cli.test_commands import files, state

__all__ = ["files"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["inspect", "nosuch.pth"], "nosuch.pth"),
        (["inspect", "."], "."),
        (["diagnose", "model.pth", "nosuch.pth"], "nosuch.pth"),
        (["diagnose", "nosuch.py", "same.pth"], "nosuch.py"),
        (["diagnose", "nosuch.py:Net", "same.pth"], "nosuch.py"),
        (["diagnose", "no.such.module:Net", "same.pth"], "no"),
        (["repair", "model.pth", "same.pth", "-o", "nofolder/out.pth"], "nofolder"),
        (["repair", "model.pth", "same.pth", "-o", "out.xyz"], "xyz"),
        (["repair", "model.pth", "same.pth"], "-o"),
        (["plan", "model.pth", "ddp.pth", "-o", "nofolder/x.toml"], "nofolder"),
        (["apply", "nosuch.toml", "-o", "out.pth"], "nosuch.toml"),
        (["apply", "model.pth", "-o", "out.pth"], "model.pth"),
        (["diagnose", "model.pth", "same.pth", "--kwargs", "{"], "--kwargs"),
        (["diagnose", "model.pth", "same.pth", "--kwargs", "[1]"], "--kwargs"),
        (["diagnose", "model.pth", "same.pth", "--rename", "nothing"], "rename"),
        (["diagnose", "model.pth", "same.pth", "--reinit", "nosuch.*"], "nosuch"),
        (["diagnose", "model.pth", "both.pth", "--choose", "nosuch"], "nosuch"),
        (["diagnose", "model.pth", "same.pth", "--reinit", "a.{0.."], "reinit"),
        (["diagnose", "model.pth", "same.pth", "--timeout", "-1"], "--timeout"),
        (["diagnose", "model.pth"], "CHECKPOINT"),
        (
            ["diagnose", "same.pth", "model.py:Net"],
            "MODEL comes first, then CHECKPOINT: model.py:Net same.pth",
        ),
        (["explain", "CKD999"], "CKD999"),
        (["nosuchcommand"], "nosuchcommand"),
        (["diagnose", "model.pth", "same.pth", "--nosuchoption"], "nosuchoption"),
    ],
    ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "",
)
def test_what_cannot_be_checked_exits_2(run: Run, files: Path, args: list[str], words: str) -> None:
    before = sorted(os.listdir())
    ended = run(*args)
    assert ended.code == 2, (ended.out, ended.err)
    assert words in ended.err
    assert ended.out == ""
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<!DOCTYPE html><html>",
        b"PK\x03\x04" + b"\0" * 40,
    ],
    ids=["empty", "lfs", "html", "zip"],
)
@pytest.mark.parametrize("command", ["inspect", "diagnose", "repair"])
def test_a_file_that_is_no_checkpoint(run: Run, files: Path, data: bytes, command: str) -> None:
    Path("bad.pth").write_bytes(data)
    args = {"inspect": [], "diagnose": [], "repair": ["-o", "out.pth"]}[command]
    ended = run(command, *([] if command == "inspect" else ["model.pth"]), "bad.pth", *args)
    assert ended.code == 2
    assert "bad.pth" in ended.err
    assert not Path("out.pth").exists()


def test_a_truncated_checkpoint(run: Run, files: Path) -> None:
    whole = Path("same.pth").read_bytes()
    for size in (len(whole) // 2, len(whole) - 30):
        Path("cut.pth").write_bytes(whole[:size])
        assert run("diagnose", "model.pth", "cut.pth").code == 2


@pytest.mark.parametrize(
    "body", ["raise ValueError('\x1b[31mno')", "import sys; sys.exit(0)", "def broken(:"]
)
def test_a_model_that_cannot_be_built(run: Run, files: Path, body: str) -> None:
    Path("model.py").write_text(body)
    ended = run("diagnose", "model.py", "same.pth")
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert "\x1b" not in ended.err


def test_a_bug_is_one_line_and_a_traceback_only_when_asked(
    capfd: pytest.CaptureFixture[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptdoctor.cli import main

    def broken(*args: object, **named: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(inspecting, "inspect", broken)
    for args, shown in ((["inspect", "same.pth"], False), (["inspect", "same.pth", "-v"], True)):
        with pytest.raises(SystemExit) as stop:
            main(args)
        printed = capfd.readouterr()
        assert stop.value.code == 2
        assert printed.err.startswith("internal error: ZeroDivisionError: oops\nThis is a bug")
        assert ("Traceback" in printed.err) == shown


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory"),
        (PermissionError(13, "Permission denied", "x.pth"), 2, "x.pth: Permission denied"),
    ],
    ids=["ctrl-c", "memory", "permission"],
)
def test_what_the_machine_refuses(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, words: str
) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise raised

    monkeypatch.setattr(inspecting, "inspect", refuse)
    for args in (["inspect", "same.pth"], ["inspect", "same.pth", "--deep"]):  # with click, too
        ended = run(*args)
        assert ended.code == code
        assert words in ended.err


def start(*args: str, **more: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ckptdoctor", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_a_reader_that_leaves_early_is_no_error(here: Path) -> None:
    torch.save({f"layer{i}x.{i * 7}.w": torch.zeros(i % 5, 3) for i in range(5000)}, "many.pth")
    process = start("inspect", "many.pth", "--format", "json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_ctrl_c_while_a_model_is_being_built(files: Path) -> None:
    Path("slow.py").write_text("import time, pathlib\npathlib.Path('started').touch()\ntime.sleep(60)\n")
    process = start("diagnose", "slow.py:Net", "same.pth")
    for _ in range(600):
        if Path("started").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.decode().strip() == "interrupted"


def test_keys_never_reach_the_terminal_raw(run: Run, here: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J"
    torch.save(state(), "model.pth")
    torch.save({f"module.{k}": v for k, v in state().items()} | {f"{evil}.w": torch.zeros(9, 9)}, "in.pth")
    for args in (
        ["inspect", "in.pth"],
        ["inspect", "in.pth", "--format", "json"],
        ["diagnose", "model.pth", "in.pth"],
        ["diagnose", "model.pth", "in.pth", "--expand", "--trace", "-v"],
        ["diagnose", "model.pth", "in.pth", "--format", "json"],
        ["diagnose", "model.pth", "in.pth", "--format", "concise"],
        ["plan", "model.pth", "in.pth", "--drop", "**.w"],
        ["repair", "model.pth", "in.pth", "-o", "out.pth"],
        ["diff", "model.pth", "in.pth"],
    ):
        ended = run(*args)
        assert "\x1b" not in ended.out + ended.err, args
        assert "\x07" not in ended.out + ended.err, args
