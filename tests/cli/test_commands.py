"""What each command prints, writes and returns."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run

KEYS = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (10, 4), "fc.bias": (10,)}


def state(prefix: str = "", **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    keys = KEYS | {k.replace("__", "."): v for k, v in shapes.items()}
    torch.manual_seed(0)
    return {prefix + key: torch.randn(shape) for key, shape in keys.items()}


@pytest.fixture
def files(here: Path) -> Path:
    torch.save(state(), "model.pth")
    torch.save(state(), "same.pth")
    torch.save(state("module."), "ddp.pth")
    torch.save(state(fc__weight=(7, 4), fc__bias=(7,)), "head.pth")
    torch.save({"raw": state(), "ema": state(), "epoch": 3}, "both.pth")
    return here


def test_inspect_says_what_is_inside(run: Run, files: Path) -> None:
    ended = run("inspect", "both.pth")
    assert ended.code == 0
    assert ended.out.startswith("both.pth  torch zip, ")
    for words in ("8 tensors", "state dict: `raw`", "state dict: `ema`", "epoch  int 3", "conv.weight"):
        assert words in ended.out
    assert ended.err == ""


def test_inspect_names_the_wrapper(run: Run, files: Path) -> None:
    assert "DataParallel" in run("inspect", "ddp.pth").out


def test_inspect_as_json(run: Run, files: Path) -> None:
    ended = run("inspect", "both.pth", "--format", "json")
    data = json.loads(ended.out)
    assert data["format"] == 1
    assert data["tensors"] == 8
    assert [s["path"] for s in data["state_dicts"]] == ["raw", "ema"]
    assert data["state_dicts"][0]["tensors"]["conv.weight"]["shape"] == [4, 3, 3, 3]
    assert "epoch" in data["rest"]


@pytest.mark.parametrize("form", ["text", "concise", "json", "yaml"])
@pytest.mark.parametrize("file", ["both.pth", "slices.pth", "nosuch.pth", "--deep"])
def test_inspect_is_the_same_with_and_without_the_parser(run: Run, files: Path, file: str, form: str) -> None:
    torch.save(torch.zeros(100_000)[:2], "slices.pth")  # a finding
    torch.save(state(), "--deep")
    parsed = run("inspect", file, "--format", form, "-o", "-")
    assert run("inspect", file, "--format", form) == parsed
    assert run("inspect", "--format", form, file) == parsed
    assert form != "text" or run("inspect", file) == parsed
    parsed = run("inspect", file, "--format", form, "--exit-zero", "-o", "-")
    assert run("inspect", "--exit-zero", file, "--format", form) == parsed
    for odd in (["--format", "--exit-zero", file], [file, "--format"], [file, file], ["", "--exit-zero"], []):
        assert run("inspect", *odd) == run("inspect", "-v", *odd)


def test_inspect_exits_1_when_something_is_unusual(run: Run, here: Path) -> None:
    class Mine(argparse.Namespace):
        pass

    Mine.__module__, Mine.__qualname__ = "my_project", "Mine"
    sys.modules["my_project"] = argparse
    argparse.Mine = Mine
    try:
        torch.save({"model": state(), "args": Mine(lr=1)}, "odd.pth")
    finally:
        del sys.modules["my_project"], argparse.Mine
    ended = run("inspect", "odd.pth")
    assert ended.code == 1
    assert "warning[CKD401]" in ended.out
    assert "my_project.Mine" in ended.out
    assert run("inspect", "odd.pth", "--exit-zero").code == 0


def test_deep_inspection_reads_the_values(run: Run, here: Path) -> None:
    bad = state()
    bad["fc.bias"][3] = float("nan")
    torch.save(bad, "nan.pth")
    assert run("inspect", "nan.pth").code == 0
    ended = run("inspect", "nan.pth", "--deep")
    assert ended.code == 1
    assert "CKD406" in ended.out
    assert "fc.bias" in ended.out


@pytest.mark.parametrize(
    ("file", "code"), [("same.pth", 0), ("ddp.pth", 1), ("head.pth", 1), ("both.pth", 1)]
)
@pytest.mark.parametrize("form", ["text", "concise", "json"])
def test_diagnose_ends_alike_in_every_format(run: Run, files: Path, file: str, code: int, form: str) -> None:
    ended = run("diagnose", "model.pth", file, "--format", form)
    assert ended.code == code
    assert ended.out
    assert ended.err == ""
    assert run("diagnose", "model.pth", file, "--format", form, "--exit-zero").code == 0


def test_diagnose_as_json(run: Run, files: Path) -> None:
    data = json.loads(run("diagnose", "model.pth", "ddp.pth", "--format", "json").out)
    assert data["format"] == 1
    assert data["verdict"] == "repairable"
    assert [d["code"] for d in data["diagnostics"]] == ["CKD101"]
    assert [e["target"] for e in data["alignment"]] == list(KEYS)
    first = data["alignment"][0]
    assert first["sources"] == ["module.conv.weight"]
    assert first["status"] == "safe"
    assert first["ops"] == ["copy"]
    assert data["unused"] == []
    assert data["plan"]["step"][0]["prefix"] == "module."


def test_concise_is_one_line_a_finding(run: Run, files: Path) -> None:
    lines = run("diagnose", "model.pth", "ddp.pth", "--format", "concise").out.splitlines()
    assert lines == [
        "ddp.pth: CKD101 [*] every key in the checkpoint starts with `module.`",
        "ddp.pth: repairable with model.pth: 4 of 4 tensors, 100 % of the values",
    ]


def test_a_report_can_go_into_a_file(run: Run, files: Path) -> None:
    shown = run("diagnose", "model.pth", "ddp.pth").out
    assert run("diagnose", "model.pth", "ddp.pth", "-o", "report.txt").out == ""
    assert Path("report.txt").read_text() == shown


def test_expand_lists_every_key(run: Run, files: Path) -> None:
    out = run("diagnose", "model.pth", "head.pth", "--expand").out
    assert "safe      conv.weight  <- conv.weight" in out
    assert "missing   fc.bias" in out
    assert "unused    fc.bias" in out


def test_trace_is_on_stderr(run: Run, files: Path) -> None:
    torch.save({k.replace("conv", "stem"): v for k, v in state().items()}, "named.pth")
    plain, traced = (run("diagnose", "model.pth", "named.pth", *more) for more in ([], ["--trace"]))
    assert traced.out == plain.out
    assert "conv <- stem" in traced.err


def test_the_state_dict_is_a_decision(run: Run, files: Path) -> None:
    ended = run("diagnose", "model.pth", "both.pth")
    assert "--choose ema" in ended.out
    assert "--choose raw" in ended.out
    assert run("plan", "model.pth", "both.pth").code == 1
    chosen = run("diagnose", "model.pth", "both.pth", "--choose", "ema")
    assert chosen.code == 1
    assert "ckptdoctor repair model.pth both.pth --choose ema -o both_repaired.pth" in chosen.out


def test_a_plan_is_data_on_stdout(run: Run, files: Path) -> None:
    ended = run("plan", "model.pth", "ddp.pth")
    assert ended.code == 0
    assert 'op = "strip_prefix"' in ended.out
    assert ended.err == ""


def test_plan_then_apply(run: Run, files: Path) -> None:
    ended = run("plan", "model.pth", "ddp.pth", "-o", "repair.toml")
    assert ended.code == 0
    assert ended.out == ""
    assert "ckptdoctor apply repair.toml" in ended.err
    ended = run("apply", "repair.toml", "-o", "fixed.safetensors")
    assert ended.code == 0
    assert "loaded 4 tensors" in ended.out
    assert run("diagnose", "model.pth", "fixed.safetensors").code == 0
    data = json.loads(run("apply", "repair.toml", "ddp.pth", "-o", "again.pth", "--format", "json").out)
    assert data["loaded"] == 4
    loaded = torch.load("again.pth", weights_only=True)
    assert all(torch.equal(loaded[k], v) for k, v in state().items())


def test_a_plan_for_other_inputs_is_refused(run: Run, files: Path) -> None:
    run("plan", "model.pth", "ddp.pth", "-o", "repair.toml")
    ended = run("apply", "repair.toml", "same.pth", "-o", "out.pth")
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert not Path("out.pth").exists()


def test_nothing_is_written_while_a_question_is_open(run: Run, files: Path) -> None:
    ended = run("repair", "model.pth", "head.pth", "-o", "out.pth")
    assert ended.code == 1
    assert ended.out == ""
    assert "--reinit 'fc.**'" in ended.err
    assert not Path("out.pth").exists()
    ended = run("plan", "model.pth", "head.pth", "-o", "out.toml")
    assert (ended.code, ended.out, Path("out.toml").exists()) == (1, "", False)


def test_the_input_is_never_overwritten(run: Run, files: Path) -> None:
    before = Path("ddp.pth").read_bytes()
    Path("link.pth").symlink_to("ddp.pth")
    for out in ("ddp.pth", "./ddp.pth", "link.pth"):
        assert run("repair", "model.pth", "ddp.pth", "-o", out).code == 2
    assert Path("ddp.pth").read_bytes() == before


def test_diff(run: Run, files: Path) -> None:
    assert run("diff", "model.pth", "same.pth").code == 0
    ended = run("diff", "model.pth", "head.pth")
    assert ended.code == 1
    assert ended.out.splitlines()[-1] == "2 of another shape."
    data = json.loads(run("diff", "model.pth", "ddp.pth", "--format", "json").out)
    assert data["removed"] == list(KEYS)
    assert data["added"] == [f"module.{k}" for k in KEYS]
    assert data["same"] is False
    assert run("diff", "both.pth#raw", "both.pth#ema").code == 0


def test_explain(run: Run, here: Path) -> None:
    by_code, by_name = run("explain", "CKD101"), run("explain", "wrapper-prefix")
    assert by_code.code == 0
    assert by_code.out == by_name.out
    assert "What to do" in by_code.out
    assert json.loads(run("explain", "CKD101", "--format", "json").out)["name"] == "wrapper-prefix"
    assert len(run("explain").out.splitlines()) > 20


def test_explain_tells_what_an_op_of_a_plan_does(run: Run, here: Path) -> None:
    rope = run("explain", "rope")
    assert rope.code == 0 and "num_key_value_heads" in rope.out
    assert "way back: `rope(2;interleaved)`" in rope.out
    assert json.loads(run("explain", "each", "--format", "json").out)["effect"].startswith("exact")
    assert "there is no rule `ropes`" in run("explain", "ropes").err


@pytest.mark.parametrize("command", ["inspect", "diagnose", "plan", "apply", "repair", "diff", "explain"])
def test_every_command_has_help(run: Run, here: Path, command: str) -> None:
    ended = run(command, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: ckptdoctor {command} ")


def test_python_m_runs_the_same(here: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "ckptdoctor", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("ckptdoctor ")
