"""A project's life: renames, red checks, migrations, a merge, a conflict; old checkpoints load all along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ckptdoctor.contract.runtime import register_migrations
from ckptdoctor.contract.write import add_release
from ckptdoctor.errors import ContractError
from tests.contract.repo import LIFE, Repo, codes
from tests.contract.scene import load_class

INPUT = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def published(repo: Repo, file: Path) -> Any:
    """Save a checkpoint of the model as it is now; returns what it computes."""
    torch.manual_seed(7)
    net = load_class(repo.root / "model.py", "Net")().eval()
    torch.save(net.state_dict(), file)
    return net(INPUT)


def computed(repo: Repo, file: Path) -> Any:
    """Load a checkpoint the way that somebody does who never heard of ckptdoctor."""
    net = load_class(repo.root / "model.py", "Net")().eval()
    register_migrations(net, repo.root / "ckpt" / "migrations" / "net")
    net.load_state_dict(torch.load(file, weights_only=True))
    return net(INPUT)


def merged(repo: Repo, branch: str) -> None:
    repo.git("checkout", "-q", "main")
    repo.git("merge", "-q", "--no-ff", "-m", f"merge {branch}", branch)


def test_the_whole_life(repo: Repo, tmp_path: Path) -> None:
    old = tmp_path / "release_1.0.pth"
    said = published(repo, old)
    assert not add_release(repo.root, "1.0", str(old)).written, "the committed tree is that of the real file"

    # A rename: the check is red, and shows the migration that would make it green.
    repo.branch("stages")
    repo.lay(LIFE / "prs" / "renamed")
    repo.lock()
    repo.commit("stages")
    red = repo.check(against="main")
    assert red.exit_code == 1 and codes(red) == ["CKD702"]
    (proposal,) = red.proposals
    with pytest.raises(RuntimeError, match="Missing key"):
        net = load_class(repo.root / "model.py", "Net")()
        net.load_state_dict(torch.load(old, weights_only=True))

    # It is written, committed and green; what was shown is what was written.
    assert repo.migrate() == [proposal.path]
    assert repo.read(proposal.path) == proposal.text
    repo.commit("migration")
    green = repo.check(against="main")
    assert green.ok and [(r.release, r.verdict) for r in green.rows] == [("1.0", "migratable")]
    merged(repo, "stages")
    assert repo.check(against="main").ok
    assert torch.equal(computed(repo, old), said)

    # A release of the new names, and a second rename: both releases go through their part of the chain.
    newer = tmp_path / "release_2.0.pth"
    assert torch.equal(published(repo, newer), said)
    assert add_release(repo.root, "2.0", str(newer)).written
    repo.commit("release 2.0")
    repo.branch("trunk")
    repo.replace("model.py", "self.stem", "self.trunk_stem")
    repo.lock()
    assert codes(repo.check(against="main")) == ["CKD702"]
    assert len(repo.migrate()) == 1, "one migration serves both releases"
    repo.commit("trunk")
    report = repo.check(against="main")
    assert report.ok
    assert {r.release: r.what.count(".toml") for r in report.rows} == {"1.0": 2, "2.0": 1}
    assert torch.equal(computed(repo, old), said)
    assert torch.equal(computed(repo, newer), said)
    merged(repo, "trunk")

    # Migrations are only ever added.
    repo.branch("tidy")
    repo.replace(proposal.path, "number = 1", "number = 1  # tidied up")
    assert codes(repo.check()) == ["CKD704"], "the next migration knows its digest"
    repo.git("checkout", "-q", "--", ".")
    last = sorted((repo.root / "ckpt/migrations/net").glob("*.toml"))[-1]
    last.unlink()
    assert codes(repo.check()) == ["CKD702", "CKD704"], "`head` knows the newest"
    (repo.root / "ckpt/migrations/net/head").unlink()
    against = repo.check(against="main")
    assert "CKD704" in codes(against), "the other commit has it"


def rename_on_branch(repo: Repo, branch: str, old: str, new: str) -> None:
    repo.branch(branch)
    repo.replace("model.py", old, new)
    repo.lock()
    repo.migrate()
    repo.commit(branch)
    assert repo.check(against="main").ok


def test_two_branches_that_add_a_migration_conflict(repo: Repo, tmp_path: Path) -> None:
    old = tmp_path / "release_1.0.pth"
    said = published(repo, old)
    rename_on_branch(repo, "head", "self.fc", "self.head")
    rename_on_branch(repo, "stem", "self.stem", "self.trunk_stem")
    merged(repo, "head")

    # Git stops, in the one line that both changed.
    failed = repo.git("merge", "--no-ff", "-m", "merge stem", "stem", check=False)
    assert failed.returncode != 0
    assert "ckpt/migrations/net/head" in repo.git("diff", "--name-only", "--diff-filter=U").stdout
    assert "CKD704" in codes(repo.check()), "the markers are seen as well"

    # Whoever takes one side of that line is told that there are two migrations with one number.
    repo.git("checkout", "--theirs", "--", "ckpt/migrations/net/head")
    repo.git("checkout", "--ours", "--", "model.py")
    repo.replace("model.py", "self.stem", "self.trunk_stem")
    repo.lock()
    report = repo.check()
    (found,) = [d for d in report.diagnostics if d.code == "CKD704"]
    assert "0001-head.toml and 0001-trunk-stem.toml are both migration 1" in found.title
    with pytest.raises(ContractError, match="both migration 1"):
        repo.migrate()

    # What it says to do is what mends it.
    remove = found.helps[0].command
    assert remove.startswith("git rm ckpt/migrations/net/0001-")
    repo.git("rm", "-q", "--cached", remove.removeprefix("git rm "))
    (repo.root / remove.removeprefix("git rm ")).unlink()
    assert [Path(p).name[:5] for p in repo.migrate()] == ["0002-"]
    repo.commit("merge stem")
    report = repo.check()
    assert report.ok and [r.verdict for r in report.rows] == ["migratable"]
    assert torch.equal(computed(repo, old), said)


def test_branches_of_different_models_do_not_conflict(repo: Repo) -> None:
    with (repo.root / "pyproject.toml").open("a") as settings:
        settings.write('\n[[tool.ckptdoctor.model]]\nname = "other"\nentry = "other.py:Other"\n')
    (repo.root / "other.py").write_text("from torch import nn\n\n\nclass Other(nn.Sequential):\n    pass\n")
    repo.replace(
        "other.py",
        "    pass",
        "    def __init__(self):\n        super().__init__(nn.Linear(3, 4), nn.Linear(4, 5))",
    )
    repo.lock()
    repo.commit("another model")
    rename_on_branch(repo, "net", "self.fc", "self.head")
    repo.branch("other")
    other = "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(3, 4)\n        self.b = nn.Linear(4, 5)\n"
    (repo.root / "other.py").write_text(f"from torch import nn\n\n\nclass Other(nn.Module):\n{other}")
    repo.lock()
    assert repo.migrate(against="main"), "main's own model counts, though it has no release"
    repo.commit("other")
    merged(repo, "net")
    merged(repo, "other")
    assert repo.check().ok


def test_a_change_that_is_taken_back_needs_the_way_back(repo: Repo, tmp_path: Path) -> None:
    first = tmp_path / "1.pth"
    said = published(repo, first)
    repo.replace("model.py", "self.fc", "self.head")
    repo.lock()
    repo.migrate()
    second = tmp_path / "2.pth"
    published(repo, second)
    add_release(repo.root, "2.0", str(second))
    repo.commit("renamed")
    repo.replace("model.py", "self.head", "self.fc")
    repo.lock()
    report = repo.check()
    assert {r.release: r.verdict for r in report.rows} == {"1.0": "compatible", "2.0": "migration missing"}
    repo.migrate()
    assert repo.check().ok
    assert torch.equal(computed(repo, first), said)
    assert torch.equal(computed(repo, second), said)
