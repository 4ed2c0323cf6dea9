"""The layers of CONTRIBUTING.md, and what may be imported when."""

import os
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

# sitecustomize of a machine where torch and what comes with it are not installed, for subprocesses as well.
WITHOUT_TORCH = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "safetensors", "scipy"):
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


def python(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, text=True, capture_output=True, check=False, env={**os.environ, **env})


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


def test_a_diagnosis_against_a_reference_imports_nothing_heavy(checkpoint: str) -> None:
    loaded = modules_after(RUN, "diagnose", checkpoint, checkpoint)
    assert "ckptdoctor" in loaded
    assert not loaded & set(HEAVY)


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A PYTHONPATH that hides torch."""
    directory = tmp_path / "bare"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(WITHOUT_TORCH)
    assert python("import torch", PYTHONPATH=str(directory)).returncode == 1
    return str(directory)


def test_inspect_works_where_torch_is_not_installed(checkpoint: str, bare: str) -> None:
    done = python(RUN + "sys.exit(code)", "inspect", checkpoint, PYTHONPATH=bare)
    assert "module.fc.weight" in done.stdout, done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_files_are_compared_where_torch_is_not_installed(checkpoint: str, bare: str) -> None:
    done = python(RUN + "sys.exit(code)", "diagnose", checkpoint, checkpoint, PYTHONPATH=bare)
    assert "state_dict" in done.stdout, done.stderr
    assert done.returncode == 1


def test_a_model_without_torch_says_what_to_install(checkpoint: str, tmp_path: Path, bare: str) -> None:
    (tmp_path / "model.py").write_text("import torch\nclass Net(torch.nn.Module): pass\n")
    out = tmp_path / "out.pth"
    args = ["repair", str(tmp_path / "model.py"), checkpoint, "-o", str(out)]
    done = python(RUN + "sys.exit(code)", *args, PYTHONPATH=bare)
    assert done.returncode == 2
    assert "torch" in done.stderr and "install" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


# What a program that asks for JSON has no use for, and would wait for.
NOT_FOR_JSON = {
    *HEAVY,
    *(
        "click",
        "rich",
        "pathlib",
        "urllib",
        "uuid",
        "datetime",
        "tempfile",
        "subprocess",
        "zipfile",
        "logging",
    ),
    *("importlib.metadata", "ckptdoctor.api", "ckptdoctor.cli.commands", "ckptdoctor.decisions"),
    *("ckptdoctor.diagnostics", "ckptdoctor.formats.content"),
    *("ckptdoctor.keys.grammar", "ckptdoctor.keys.folding", "ckptdoctor.reports.page"),
}


def imported(*args: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *args], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}


@pytest.mark.parametrize("script", [False, True], ids=["python -m", "script"])
def test_inspect_as_json_imports_nothing_that_it_does_not_need(checkpoint: str, script: bool) -> None:
    entry = ["-c", "from ckptdoctor.cli import main; main()"] if script else ["-m", "ckptdoctor"]
    loaded = imported(*entry, "inspect", checkpoint, "--format", "json")
    assert {"ckptdoctor.formats.torch_zip", "ckptdoctor.reports.contents"} <= loaded
    assert not (loaded - imported("-c", "pass")) & NOT_FOR_JSON
