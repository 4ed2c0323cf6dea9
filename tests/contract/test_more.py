"""Variants, artifacts, and what no name shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ckptdoctor.contract.files import WorkingTree
from ckptdoctor.contract.history import History, read_history
from ckptdoctor.contract.propose import propose, write_proposals
from ckptdoctor.contract.runtime import register_migrations
from ckptdoctor.contract.units import open_project
from ckptdoctor.plan.toml import from_dict
from ckptdoctor.targets.treefile import read_tree, write_tree
from tests.contract.repo import Repo, codes
from tests.contract.scene import load_class

TWO = """\
[tool.ckptdoctor]

[[tool.ckptdoctor.model]]
name = "net"
entry = "model.py:Net"
variants = { small = { classes = 3 }, large = { classes = 30 } }
"""


def test_each_variant_has_its_own_tree_releases_and_migrations(repo: Repo, tmp_path: Path) -> None:
    from ckptdoctor.contract.write import add_release
    from ckptdoctor.errors import ContractError

    (repo.root / "pyproject.toml").write_text(TWO)
    repo.lock()
    states = {}
    for variant, classes in (("small", 3), ("large", 30)):
        torch.manual_seed(classes)
        states[classes] = load_class(repo.root / "model.py", "Net")(classes).state_dict()
        torch.save(states[classes], tmp_path / f"{variant}.pth")
        add_release(repo.root, "1.0", str(tmp_path / f"{variant}.pth"), f"net.{variant}")
    with pytest.raises(ContractError, match=r"--model net\.small, --model net\.large"):
        add_release(repo.root, "2.0", str(tmp_path / "small.pth"))
    assert repo.check().ok
    repo.replace("model.py", "self.fc", "self.head")
    repo.lock()
    assert {(r.unit, r.verdict) for r in repo.check().rows} == {
        ("net.small", "migration missing"),
        ("net.large", "migration missing"),
    }
    assert sorted(repo.migrate()) == [
        "ckpt/migrations/net.large/0001-head.toml",
        "ckpt/migrations/net.small/0001-head.toml",
    ]
    assert repo.check().ok
    for classes, state in states.items():
        model = load_class(repo.root / "model.py", "Net")(classes)
        register_migrations(model, repo.root / "ckpt" / "migrations")
        model.load_state_dict(state)
        assert torch.equal(model.head.weight, state["fc.weight"])


def with_artifact(repo: Repo, content: Any, more: str = "") -> Path:
    line = 'entry = "model.py:Net"\n'
    repo.replace("pyproject.toml", line, f'{line}artifacts = ["out/*"]\n{more}')
    (repo.root / "out").mkdir()
    file = repo.root / "out" / "net.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    return file


def state(repo: Repo) -> dict[str, torch.Tensor]:
    return dict(load_class(repo.root / "model.py", "Net")().state_dict())


def test_an_artifact_that_git_lfs_has_not_fetched_could_not_be_checked(repo: Repo) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
    with_artifact(repo, pointer)
    report = repo.check(build=False)
    assert report.exit_code == 2 and "lfs" in report.problems[0].lower()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"state_dict": s, "optimizer": {"state": {}, "param_groups": []}}, "CKD102"),
        (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, "CKD101"),
        (lambda s: {k: v for k, v in s.items() if "fc" not in k}, "CKD202"),
        (lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, "CKD303"),
    ],
)
def test_an_artifact_has_to_load_as_it_is(change: Any, words: str, repo: Repo) -> None:
    with_artifact(repo, change(state(repo)))
    report = repo.check(build=False)
    assert report.exit_code == 1 and codes(report) == ["CKD706"]
    (found,) = [d for d in report.diagnostics if d.code == "CKD706"]
    assert any(words in line.text for line in found.evidence)
    assert found.place == "out/net.pth"


def test_a_dtype_can_be_allowed(repo: Repo) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in state(repo).items()}
    with_artifact(repo, half, 'artifact_dtypes = ["float16"]\n')
    assert repo.check(build=False).ok


def test_nothing_in_an_artifact_is_executed(repo: Repo) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (exec, (f"open({str(repo.root / 'hacked')!r}, 'w').write('x')",))

    with_artifact(repo, pickle.dumps({"a": Evil()}))
    assert repo.check(build=False).exit_code in (1, 2)
    assert not (repo.root / "hacked").exists()


def test_no_promise_no_verdict(repo: Repo) -> None:
    repo.replace("pyproject.toml", '"backward"', '"none"')
    repo.replace("model.py", "classes=10", "classes=12")
    repo.lock()
    report = repo.check(against="main")
    assert report.ok and not report.rows


def test_a_release_in_another_dtype_takes_the_same_migration(repo: Repo) -> None:
    repo.replace("model.py", "self.fc", "self.head")
    repo.lock()
    repo.migrate()
    half = repo.read("ckpt/releases/net/1.0.tree").replace("f32[", "bf16[")
    (repo.root / "ckpt/releases/net/1.0-bf16.tree").write_text(half)
    report = repo.check()
    assert report.ok, report.diagnostics
    assert {r.release: r.verdict for r in report.rows} == {"1.0": "migratable", "1.0-bf16": "migratable"}


def test_a_change_that_no_name_shows_counts_once_it_is_a_migration(repo: Repo) -> None:
    """Names and shapes stay and what they mean changes; only a person can know, and does."""
    project = open_project(repo.root)
    unit = project.units[0]
    tree = read_tree(repo.read("ckpt/net.tree"), "net.tree")
    swap = from_dict(
        {
            "source": {"file": "1.0", "tree": tree.digest, "keys": len(tree)},
            "target": {"model": "net", "tree": tree.digest, "keys": len(tree)},
            "step": [
                {"op": "rename", "from": "layer1.0.bias", "to": "layer1.1.bias", "keys": 1},
                {"op": "rename", "from": "layer1.1.bias", "to": "layer1.0.bias", "keys": 1},
            ],
            "result": {"loaded": len(tree), "unchanged": len(tree) - 2},
        }
    )
    made = propose(unit, History(), [(swap, tree, tree)])
    write_proposals(repo.root, unit, [m for _, m in made])
    assert not read_history(WorkingTree(repo.root), unit).problems
    assert [r.verdict for r in repo.check(build=False).rows] == ["migratable"]


def test_line_ends_of_a_checkout_do_not_count(repo: Repo) -> None:
    repo.replace("model.py", "self.fc", "self.head")
    repo.lock()
    repo.migrate()
    repo.commit("migration")
    for path in (repo.root / "ckpt").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert repo.check(against="HEAD").ok


def test_a_shallow_or_detached_base_is_named_shortly(repo: Repo) -> None:
    commit = repo.git("rev-parse", "HEAD").stdout.strip()
    repo.replace("model.py", "classes=10", "classes=12")
    repo.lock()
    (repo.root / "ckpt/releases/net/1.0.tree").unlink()
    repo.commit("more classes, and no release")
    report = repo.check(against=commit)
    assert {r.release: r.verdict for r in report.rows} == {commit[:12]: "breaking"}


def test_trees_of_a_release_stay_what_they_were(repo: Repo) -> None:
    text = repo.read("ckpt/releases/net/1.0.tree")
    assert write_tree(read_tree(text, "1.0.tree")) == text


def test_a_broken_base_does_not_lock_the_door(repo: Repo) -> None:
    repo.replace("pyproject.toml", '"backward"', '"backwards"')
    repo.replace("ckpt/net.tree", "fc.bias ", "<<<<<<< HEAD\nfc.bias ")
    repo.commit("broken")
    repo.branch("mended")
    repo.replace("pyproject.toml", '"backwards"', '"backward"')
    repo.replace("ckpt/net.tree", "<<<<<<< HEAD\n", "")
    report = repo.check(against="main", build=False)
    assert report.ok and len(report.notes) == 2
    assert all(note.startswith("not compared with: ") for note in report.notes)


def test_a_project_in_a_folder_of_its_repository(tmp_path: Path) -> None:
    import shutil

    from tests.contract.repo import LIFE

    outer = Repo(tmp_path)
    outer.git("init", "-q", "-b", "main")
    shutil.copytree(LIFE / "start", tmp_path / "packages" / "net")
    outer.commit("start")
    inner = Repo(tmp_path / "packages" / "net")
    assert inner.check(against="main", build=False).ok
    (inner.root / "ckpt/releases/net/1.0.tree").unlink()
    assert codes(inner.check(against="main", build=False)) == ["CKD705"]


def test_names_of_files_are_not_trusted(repo: Repo) -> None:
    (repo.root / "ckpt/releases/net/1.0; touch hacked.tree").write_text(repo.read("ckpt/net.tree"))
    report = repo.check(build=False)
    assert report.exit_code == 2 and "is no version" in report.problems[0]
    (repo.root / "ckpt/releases/net/1.0; touch hacked.tree").unlink()
    (repo.root / "ckpt/migrations/net").mkdir(parents=True)
    (repo.root / "ckpt/migrations/net/$(touch hacked).toml").write_text("x = 1\n")
    report = repo.check(build=False)
    assert codes(report) == ["CKD704"] and "no migration's name" in report.diagnostics[0].title
