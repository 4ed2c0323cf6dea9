"""The fixture project as a repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.repo import Repo, start


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return start(tmp_path / "project")
