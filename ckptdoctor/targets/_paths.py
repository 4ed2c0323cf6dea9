"""Paths of source files: whose they are, and how they are shown."""

from __future__ import annotations

import os


def shown_path(file: str) -> str:
    """``file`` relative to the working directory where that is shorter to read."""
    try:
        relative = os.path.relpath(file)
    except ValueError:  # another drive
        return file
    return file if relative.startswith("..") else relative


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    parts = file.replace("\\", "/").split("/")
    return (
        "site-packages" in parts or "dist-packages" in parts or file.startswith(os.path.dirname(os.__file__))
    )
