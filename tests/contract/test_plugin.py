"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.contract.repo import LIFE, Repo

TEST = """\
from model import Net


def test_contract(ckpt_contract):
    ckpt_contract.check(Net(), "net")
"""


@pytest.fixture
def project(repo: Repo) -> Repo:
    (repo.root / "test_net.py").write_text(TEST)
    return repo


def run(repo: Repo, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_ADDOPTS") and "XDIST" not in k}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *args]
    return subprocess.run(
        command, cwd=repo.root, env={**clean, **env}, text=True, capture_output=True, check=False
    )


def test_a_model_that_is_as_committed_passes(project: Repo) -> None:
    done = run(project)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_change_fails_and_is_updated_on_ones_own_machine_only(project: Repo) -> None:
    project.lay(LIFE / "prs" / "renamed")
    old = project.read("ckpt/net.tree")
    done = run(project)
    assert done.returncode == 1
    assert "CKD701" in done.stdout and "CKD702" in done.stdout and "pytest --ckpt-update" in done.stdout
    refused = run(project, "--ckpt-update", CI="true")
    assert refused.returncode == 4 and "CI is set" in refused.stderr
    assert project.read("ckpt/net.tree") == old
    done = run(project, "--ckpt-update")
    assert done.returncode == 1 and "CKD701" not in done.stdout, "a migration is still missing"
    assert "stages" in project.read("ckpt/net.tree")
    project.migrate()
    assert run(project).returncode == 0


def test_an_unknown_name_is_an_error_that_lists_the_known(project: Repo) -> None:
    project.replace("test_net.py", '"net"', '"nte"')
    done = run(project)
    assert done.returncode == 1 and "there is `net`" in done.stdout


def test_the_plugin_imports_nothing_until_it_is_asked(project: Repo) -> None:
    code = "import sys, pytest; pytest.main(['--co', '-q', '-p', 'no:cacheprovider', 'train.py']); print(sorted(m for m in sys.modules if m.startswith('ckptdoctor')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, text=True, capture_output=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "['ckptdoctor', 'ckptdoctor.pytest_plugin']"
