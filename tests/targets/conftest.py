"""Source files for tests of targets."""

import textwrap
from pathlib import Path

import pytest

from tests.targets.sources import HEAD, Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes source below the working directory, behind the usual two imports."""
    monkeypatch.chdir(tmp_path)

    def write(code: str, name: str = "model.py", head: str = HEAD) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + textwrap.dedent(code))
        return name

    return write
