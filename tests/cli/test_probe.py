"""`--probe` on the command line: exit code 1 and no file when the outputs are not those expected."""

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run

NET = """
from torch import nn

def build(bias=True):
    return nn.Sequential(nn.Linear(3, 3, bias=bias), nn.Tanh())
"""


@pytest.fixture
def files(here: Path) -> Path:
    (here / "net.py").write_text(NET)
    weight, bias, x = torch.randn(3, 3), torch.randn(3), torch.randn(4, 3)
    torch.save({"module.0.weight": weight, "module.0.bias": bias}, "good.pth")
    torch.save({"module.0.weight": weight.t(), "module.0.bias": bias}, "square.pth")
    torch.save({"inputs": x, "expected": torch.tanh(x @ weight.t() + bias)}, "probe.pt")
    return here


def test_repair_writes_only_what_passes(run: Run, files: Path) -> None:
    good = run("repair", "net.py:build", "good.pth", "-o", "good.safetensors", "--probe", "probe.pt")
    assert good.code == 0 and "probe: 12 values of 1 output as expected" in good.out
    wrong = run("repair", "net.py:build", "square.pth", "-o", "square.safetensors", "--probe", "probe.pt")
    assert wrong.code == 1 and "most by" in wrong.err and "no file was written" in wrong.err
    assert not Path("square.safetensors").exists() and wrong.out == ""
    missing = run("repair", "net.py:build", "good.pth", "-o", "other.pth", "--probe", "none.pt")
    assert missing.code == 2 and "none.pt" in missing.err and not Path("other.pth").exists()


def test_apply_probes_the_plans_model(run: Run, files: Path) -> None:
    assert run("plan", "net.py:build", "good.pth", "-o", "repair.toml").code == 0
    done = run("apply", "repair.toml", "-o", "out.pth", "--probe", "probe.pt", "--format", "json")
    assert json.loads(done.out)["probe"]["rtol"] == 1e-4
    assert run("apply", "repair.toml", "square.pth", "-o", "no.pth", "--probe", "probe.pt").code == 1
    assert not Path("no.pth").exists()
