"""The commands: exit codes, what they print, and that none of them needs torch to compare."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.contract.repo import LIFE, Repo
from tests.test_layers import RUN, WITHOUT_TORCH


def call(repo: Repo, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    import os

    env = {**{k: v for k, v in os.environ.items() if k != "GITHUB_STEP_SUMMARY"}, "NO_COLOR": "1", **env}
    code = RUN + "sys.exit(code)"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=repo.root,
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A PYTHONPATH that hides torch."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    return str(folder)


def test_lock_check_migrate(repo: Repo, tmp_path: Path) -> None:
    assert call(repo, "lock").stdout == "ckpt/net.tree is up to date\n"
    done = call(repo, "check", "--against", "main")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All fine: checked 1 model against 1 release" in done.stdout
    repo.lay(LIFE / "prs" / "renamed")
    refused = call(repo, "migrate", "--write")
    assert refused.returncode == 2 and "`ckptdoctor lock` first" in refused.stderr
    assert call(repo, "lock").stdout == "wrote ckpt/net.tree\n"
    summary = tmp_path / "summary.md"
    done = call(repo, "check", "--format", "github", GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 1
    assert done.stdout.startswith("::error file=ckpt/net.tree,line=")
    assert "ckpt/migrations/net/0001-stages.toml" in summary.read_text()
    shown = call(repo, "migrate")
    assert shown.returncode == 1 and 'to = "stages.{i-1}.**"' in shown.stdout
    assert not (repo.root / "ckpt/migrations").exists(), "only --write writes"
    written = call(repo, "migrate", "--write")
    assert written.returncode == 0 and "wrote ckpt/migrations/net/0001-stages.toml" in written.stdout
    assert call(repo, "migrate", "--write").stdout == "no migration is missing\n"
    report = json.loads(call(repo, "check", "--format", "json").stdout)
    assert report["ok"] and report["verdicts"][0]["verdict"] == "migratable"


def test_a_migration_is_a_plan_that_apply_takes(repo: Repo, tmp_path: Path) -> None:
    from tests.contract.scene import load_class

    old = load_class(repo.root / "model.py", "Net")()
    torch.save(old.state_dict(), tmp_path / "old.pth")
    repo.lay(LIFE / "prs" / "renamed")
    repo.lock()
    (path,) = repo.migrate()
    done = call(repo, "apply", path, str(tmp_path / "old.pth"), "-o", str(tmp_path / "new.pth"))
    assert done.returncode == 0, done.stderr
    new = load_class(repo.root / "model.py", "Net")()
    new.load_state_dict(torch.load(tmp_path / "new.pth", weights_only=True))
    assert torch.equal(new.fc.weight, old.fc.weight)


def test_release_add(repo: Repo, tmp_path: Path) -> None:
    from tests.contract.scene import load_class

    state = load_class(repo.root / "model.py", "Net")().state_dict()
    ema = {k: v.clone() for k, v in state.items()}
    torch.save({"epoch": 3, "ema": ema, "state_dict": state}, tmp_path / "two.pth")
    asked = call(repo, "release", "add", "2.0", str(tmp_path / "two.pth"))
    assert asked.returncode == 2 and "name the one that is meant" in asked.stderr
    done = call(repo, "release", "add", "2.0", f"{tmp_path / 'two.pth'}#ema")
    assert done.returncode == 0, done.stderr
    assert repo.read("ckpt/releases/net/2.0.tree") == repo.read("ckpt/net.tree"), "buffers are marked, too"
    torch.save({k: v for k, v in state.items() if "fc" not in k}, tmp_path / "other.pth")
    again = call(repo, "release", "add", "2.0", str(tmp_path / "other.pth"))
    assert again.returncode == 2 and "a published checkpoint does not change" in again.stderr
    wrong = call(repo, "release", "add", "../x", str(tmp_path / "other.pth"))
    assert wrong.returncode == 2 and "is no version" in wrong.stderr


def test_without_torch_committed_trees_are_compared(repo: Repo, bare: str) -> None:
    done = call(repo, "check", "--no-build", PYTHONPATH=bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 not built: the committed tree was taken as it is" in done.stdout
    done = call(repo, "check", PYTHONPATH=bare)
    assert done.returncode == 2
    assert "could not check" in done.stdout and "torch" in done.stdout
    assert call(repo, "files", PYTHONPATH=bare).stdout == "3 files read, all fine\n"


def test_without_torch_and_unchanged_nothing_is_missing(repo: Repo, bare: str) -> None:
    assert call(repo, "check").returncode == 0
    # The record is of this Python; hiding torch by PYTHONPATH adds no installed package.
    done = call(repo, "check", PYTHONPATH=bare)
    assert done.returncode == 0, done.stdout
    assert "not built again" in done.stdout


def test_what_is_fine_imports_nothing_heavy(repo: Repo) -> None:
    assert call(repo, "check").returncode == 0
    report = "\nprint(*sorted({n.partition('.')[0] for n in sys.modules}), file=sys.stderr)\nsys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", RUN + report, "check"],
        cwd=repo.root,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert not {"torch", "numpy", "scipy", "networkx"} & set(done.stderr.split())


def test_files_names_what_cannot_be_read(repo: Repo) -> None:
    repo.replace("ckpt/net.tree", "fc.bias ", "<<<<<<< HEAD\nfc.bias ")
    done = call(repo, "files", "ckpt/net.tree", "pyproject.toml", "model.py")
    assert done.returncode == 1
    assert done.stdout.startswith("ckpt/net.tree:2: an unresolved merge conflict")
    checked = call(repo, "check", "--no-build")
    assert checked.returncode == 2 and "ckpt/net.tree:2" in checked.stdout
    built = call(repo, "check")
    assert built.returncode == 1 and "CKD701" in built.stdout
    (repo.root / "pyproject.toml").write_text('[tool.ckptdoctor]\ncompatibility = "x"\n')
    done = call(repo, "files", "pyproject.toml")
    assert done.returncode == 1 and done.stdout.startswith("pyproject.toml:2: ")


@pytest.mark.parametrize("ref", ["no-such-branch", "--output=x", ""])
def test_an_unknown_commit_could_not_be_checked(repo: Repo, ref: str) -> None:
    done = call(repo, "check", f"--against={ref}")
    assert done.returncode == 2
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    if ref == "no-such-branch":
        assert "fetch-depth: 0" in done.stderr


def test_a_folder_without_settings_could_not_be_checked(tmp_path: Path) -> None:
    done = call(Repo(tmp_path), "check")
    assert done.returncode == 2 and "[[tool.ckptdoctor.model]]" in done.stderr


def test_the_action_and_the_hooks_run_commands_that_exist(repo: Repo, tmp_path: Path) -> None:
    """The action's script, run by bash as GitHub does, with inputs that try to be more than words."""
    import os
    import re

    root = Path(__file__).parents[2]
    action = (root / "action.yml").read_text()
    script = re.sub(r"^ {8}", "", action[action.index("        set +e") :], flags=re.MULTILINE)
    assert "${{" not in script, "an expression in a script is code"
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "ckptdoctor"
    tool.write_text(f"#!{sys.executable}\nfrom ckptdoctor.cli import main\nmain()\n")
    tool.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "AGAINST": "main",
        "MODEL": "",
        "NO_BUILD": "true",
    }
    env["SARIF"] = "out $(touch hacked).sarif"
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=repo.root, env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((repo.root / env["SARIF"]).read_text())["version"] == "2.1.0"
    assert not (repo.root / "hacked").exists()
    repo.lay(LIFE / "prs" / "more_classes_accepted")
    repo.replace(
        "ckpt/net.tree", "fc.bias                                           f32[10]", "fc.bias   f32[12]"
    )
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=repo.root, env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode in (1, 2), "the check's own code is the step's"
    hooks = (root / ".pre-commit-hooks.yaml").read_text()
    for entry in re.findall(r"entry: ckptdoctor (\w+)", hooks):
        assert call(repo, entry, "--help").returncode == 0
