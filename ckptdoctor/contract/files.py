"""The contract's files, in the working tree or as git knows them at a commit."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ckptdoctor.errors import ContractError
from ckptdoctor.keys import printable
from ckptdoctor.writers.leftovers import is_unfinished


class Files(Protocol):
    """Text files below a project's root; paths have ``/``."""

    def read(self, path: str) -> str | None:
        """The text, None when there is no such file. Raises :class:`ContractError` when it is no text."""

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; none when it is not there."""


@dataclass(frozen=True)
class WorkingTree:
    """The files as they are on the disk."""

    root: Path

    def read(self, path: str) -> str | None:
        """See :class:`Files`."""
        try:
            return (self.root / path).read_bytes().decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise ContractError(
                f"{printable(path)} is no text: {error.reason} at byte {error.start}"
            ) from None
        except OSError as error:
            raise ContractError(f"{printable(path)} cannot be read: {error.strerror}") from None

    def names(self, folder: str) -> list[str]:
        """See :class:`Files`."""
        place = self.root / folder
        found = [p.name for p in place.iterdir() if p.is_file()] if place.is_dir() else []
        return sorted(name for name in found if not is_unfinished(name))


@dataclass(frozen=True)
class GitTree:
    """The files of one commit; nothing is checked out."""

    root: Path
    ref: str
    commit: str

    @property
    def short(self) -> str:
        """The name as it was given; a whole digest is cut."""
        return self.ref[:12] if self.ref == self.commit else self.ref

    def read(self, path: str) -> str | None:
        """See :class:`Files`."""
        # A path that git does not know and one that it cannot read end alike; the listing tells them apart.
        folder, _, name = path.rpartition("/")
        if name not in self.names(folder):
            return None
        done = _git(self.root, "cat-file", "blob", f"{self.commit}:./{path}")
        if done.returncode:
            raise ContractError(f"git cannot read {printable(path)} at {printable(self.ref)}: {_words(done)}")
        try:
            return done.stdout.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ContractError(
                f"{printable(path)} at {printable(self.ref)} is no text: {error.reason}"
            ) from None

    def names(self, folder: str) -> list[str]:
        """See :class:`Files`."""
        place = f"./{folder}/" if folder else "./"
        done = _git(self.root, "ls-tree", "-z", self.commit, "--", place)
        if done.returncode:
            raise ContractError(f"git cannot list {printable(self.ref)}: {_words(done)}")
        rows = [row.split("\t", 1) for row in done.stdout.decode("utf-8", "replace").split("\0") if row]
        return sorted(path.rpartition("/")[2] for kind, path in rows if kind.split()[1] == "blob")


def open_ref(root: Path, ref: str) -> GitTree:
    """The files at ``ref``. Raises :class:`ContractError` that says how to get it when it is not there."""
    if not ref or ref.startswith("-"):
        raise ContractError(f"`{printable(ref)}` is no name of a commit")
    done = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if done.returncode:
        inside = _git(root, "rev-parse", "--is-inside-work-tree")
        if inside.returncode:
            raise ContractError(
                f"{printable(str(root))} is in no git repository, so there is no {printable(ref)}"
            )
        raise ContractError(
            f"git knows no commit `{printable(ref)}`. A shallow clone has only the newest: "
            "`git fetch --depth=1 origin main`, then --against FETCH_HEAD; in actions/checkout fetch-depth: 0"
        )
    return GitTree(root, ref, done.stdout.decode().strip())


def _git(root: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
    command: Sequence[str] = ["git", "-C", str(root), *args]
    try:
        return subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ContractError(f"--against needs git: {error.strerror}") from None


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    return printable(done.stderr.decode("utf-8", "replace").strip()) or f"exit code {done.returncode}"
