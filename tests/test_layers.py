"""The layers of CONTRIBUTING.md, and what may be imported when."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from importlinter.cli import lint_imports

HEAVY = ("torch", "numpy", "networkx", "scipy", "pydantic", "safetensors")

REPORT = """
import sys
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""

# A meta path finder that plays a machine where these are not installed.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""

RUN = """
import sys
sys.argv[0] = "ckptdoctor"
from ckptdoctor.cli import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
"""


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], text=True, capture_output=True, check=False)


def modules_after(code: str, *args: str) -> set[str]:
    done = python(code + REPORT, *args)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "ddp.pth"
    torch.save({"epoch": 3, "state_dict": {"module.fc.weight": torch.ones(2, 3)}}, path)
    return str(path)


def test_the_layers_hold() -> None:
    assert lint_imports() == 0


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = modules_after("import ckptdoctor")
    assert "ckptdoctor" in loaded
    assert not loaded & {*HEAVY, "rich", "click"}


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["inspect", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    assert not modules_after(RUN, *args) & set(HEAVY)


def test_inspect_imports_nothing_heavy(checkpoint: str) -> None:
    loaded = modules_after(RUN, "inspect", checkpoint)
    assert "ckptdoctor" in loaded
    assert not loaded & set(HEAVY)


def test_inspect_works_where_torch_is_not_installed(checkpoint: str) -> None:
    blocked = ("torch", "numpy", "safetensors", "scipy")
    done = python(WITHOUT % (blocked,) + RUN + "sys.exit(code)", "inspect", checkpoint)
    assert "module.fc.weight" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_without_torch_says_what_to_install(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import torch\nclass Net(torch.nn.Module): pass\n")
    blocked = ("torch", "numpy", "safetensors", "scipy")
    code = WITHOUT % (blocked,) + RUN + "sys.exit(code)"
    done = python(code, "repair", str(tmp_path / "model.py"), checkpoint, "-o", str(tmp_path / "out.pth"))
    assert done.returncode == 2
    assert "torch" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.pth").exists()
