"""Models of a repository, loaded into the test's own process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def load_class(file: Path, name: str) -> Any:
    """The class ``name`` of a file, apart from every other module of that name."""
    spec = importlib.util.spec_from_file_location(f"scene_{abs(hash((file, file.read_text())))}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
