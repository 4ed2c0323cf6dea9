"""A real git repository with the fixture project in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdoctor.contract import CheckReport, check_project
from ckptdoctor.contract.write import migrate, write_locks

LIFE = Path(__file__).parents[2] / "fixtures" / "lifecycle"
# No configuration of the machine counts: neither hooks nor signing nor another default branch.
GIT_ENV = {
    **{k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
}  # fmt: skip


@dataclass(frozen=True)
class Repo:
    """A working copy; everything is relative to its root."""

    root: Path

    def git(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["git", *args], cwd=self.root, env=GIT_ENV, text=True, capture_output=True, check=False
        )
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def commit(self, words: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", words)

    def branch(self, name: str, start: str = "main") -> None:
        self.git("checkout", "-q", "-b", name, start)

    def lay(self, folder: Path, remove: Sequence[str] = ()) -> None:
        """Put a fixture's files over what is there."""
        shutil.copytree(folder, self.root, dirs_exist_ok=True)
        (self.root / "expect.toml").unlink(missing_ok=True)
        for path in remove:
            (self.root / path).unlink()

    def replace(self, path: str, old: str, new: str) -> None:
        file = self.root / path
        text = file.read_text()
        assert old in text, f"{path} has no {old!r}"
        file.write_text(text.replace(old, new))

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def lock(self) -> None:
        write_locks(self.root)

    def check(self, **options: Any) -> CheckReport:
        return check_project(self.root, **options)

    def migrate(self, **options: Any) -> list[str]:
        return migrate(self.root, write=True, **options)[1]


def start(root: Path) -> Repo:
    """The project as of its first commit on main."""
    root.mkdir(parents=True, exist_ok=True)
    repo = Repo(root)
    repo.git("init", "-q", "-b", "main")
    repo.lay(LIFE / "start")
    repo.commit("release 1.0")
    return repo


def codes(report: CheckReport, *severities: str) -> list[str]:
    wanted = severities or ("error", "warning")
    return sorted({d.code for d in report.diagnostics if d.severity in wanted})
