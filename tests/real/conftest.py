"""Real checkpoints, which no one here wrote. Without them these tests fail: they cannot be skipped."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.fetch import problems

DIRECTORY = Path(__file__).parents[2] / ".cache" / "real"


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """The path of a pinned file, named as in weights.toml."""
    if wrong := problems(DIRECTORY):
        pytest.fail("`make real` has not brought the real checkpoints:\n" + "\n".join(wrong), pytrace=False)
    return lambda name: DIRECTORY / name


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a user does; colours off, wide enough that nothing wraps."""

    def run(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ckptdoctor", *map(str, args)],
            text=True,
            capture_output=True,
            check=False,
            cwd=cwd,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        )

    return run
