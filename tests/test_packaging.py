"""What a user installs: the wheel holds all of the package, its data files and its command."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import ckptdoctor

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", str(out), str(ROOT)], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("ckptdoctor-*.whl")))


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = (p for p in (ROOT / "ckptdoctor").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    expected = {str(p.relative_to(ROOT)) for p in files}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "ckptdoctor/py.typed" in held


def test_the_metadata_is_complete(wheel: zipfile.ZipFile) -> None:
    (metadata,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    text = wheel.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert any(n.endswith("LICENSE") for n in wheel.namelist())
    base = [s for s in text.splitlines() if s.startswith("Requires-Dist:") and "extra ==" not in s]
    assert sorted(s.split()[1].partition(">")[0] for s in base) == ["click", "networkx", "pydantic", "rich"]
    scripts = wheel.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "ckptdoctor = ckptdoctor.cli:main" in scripts
    assert f"Version: {ckptdoctor.__version__}\n" in text


def test_the_installed_wheel_answers(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ckptdoctor.cli import main; main()"
    command = [sys.executable, "-c", code, str(tmp_path), "--version"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ckptdoctor.__version__ in done.stdout


def test_the_pinned_versions_are_within_what_users_get() -> None:
    from packaging.requirements import Requirement

    pins = [s for s in (ROOT / "constraints-dev.txt").read_text().splitlines() if s and s[0] != "#"]
    pinned = {r.name: next(iter(r.specifier)).version for r in map(Requirement, pins)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(text) for group in groups for text in group]
    missing = [r.name for r in wanted if r.name != "ckptdoctor" and pinned.get(r.name) not in r.specifier]
    assert not missing
