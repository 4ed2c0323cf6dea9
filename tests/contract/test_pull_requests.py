"""Every verdict has a pull request that gets it; refactors get none."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptdoctor.contract import build
from tests.contract.repo import LIFE, Repo, codes
from tests.contract.scene import load_class

PRS = sorted(p.name for p in (LIFE / "prs").iterdir())


def expected(name: str) -> dict[str, Any]:
    return tomllib.loads((LIFE / "prs" / name / "expect.toml").read_text())


@pytest.mark.parametrize("name", PRS)
def test_pull_request(name: str, repo: Repo) -> None:
    wanted = expected(name)
    repo.branch("request")
    repo.lay(LIFE / "prs" / name, wanted.get("remove", ()))
    if "artifact" in wanted:
        state = load_class(repo.root / "model.py", "Net")().state_dict()
        (repo.root / "out").mkdir()
        torch.save({wanted["artifact"] + k: v for k, v in state.items()}, repo.root / "out" / "net.pth")
    if wanted.get("lock", True):
        repo.lock()
    repo.commit(name)
    report = repo.check(against="main")
    assert report.exit_code == wanted["exit"], report.problems
    assert codes(report) == wanted["codes"], report.diagnostics
    assert {r.release: r.verdict for r in report.rows if r.direction == "backward"} == wanted["verdicts"]
    assert repo.git("status", "--porcelain").stdout == "", "check writes nothing that git sees"


def test_every_verdict_and_every_code_has_a_pull_request() -> None:
    all_wanted = [expected(name) for name in PRS]
    assert {v for w in all_wanted for v in w["verdicts"].values()} == {
        *("compatible", "migration missing", "breaking", "accepted")
    }, "`migratable` is in test_life.py"
    found = {c for w in all_wanted for c in w["codes"]}
    assert found == {f"CKD7{n:02d}" for n in range(1, 12)} - {"CKD704"}, "CKD704 is in test_life.py"


def test_a_finding_says_where_why_and_what_to_do(repo: Repo) -> None:
    repo.lay(LIFE / "prs" / "renamed")
    repo.lock()
    (found,) = repo.check().diagnostics
    assert found.place.startswith("ckpt/net.tree:")
    line = repo.read("ckpt/net.tree").splitlines()[int(found.place.partition(":")[2]) - 1]
    assert "stages" in line, "the place is the line of the first changed key"
    assert found.fix is not None and found.fix.applicability == "safe"
    assert "layer{i}.** -> stages.{i-1}.**" in found.fix.text
    assert [h.command for h in found.helps] == ["ckptdoctor migrate --model net --write"]


def test_a_break_names_the_keys_and_the_decision(repo: Repo) -> None:
    repo.lay(LIFE / "prs" / "more_classes")
    repo.lock()
    (found,) = repo.check().diagnostics
    assert set(found.keys) == {"fc.weight", "fc.bias"}
    assert any(h.command == "ckptdoctor migrate --model net --write --reinit 'fc.**'" for h in found.helps)
    assert repo.migrate() == [], "nothing is decided for anybody"


def test_a_decision_in_a_migration_makes_a_break_migratable(repo: Repo) -> None:
    from ckptdoctor.decisions import parse_decisions

    repo.lay(LIFE / "prs" / "more_classes")
    repo.lock()
    paths = repo.migrate(decisions=parse_decisions(["reinit=fc.**"]))
    assert [Path(p).parent.as_posix() for p in paths] == ["ckpt/migrations/net"]
    assert 'decision = ["reinit=fc.**"]' in repo.read(paths[0])
    report = repo.check()
    assert report.ok and [r.verdict for r in report.rows] == ["migratable"]


def test_training_code_and_unchanged_models_build_nothing(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert repo.check().models == {"net": "built"}
    repo.lay(LIFE / "prs" / "training_code")
    (repo.root / "notes.md").write_text("# more\n")
    (repo.root / "evaluate.py").write_text("import train\n")
    monkeypatch.setattr(build, "keep_tree", None)  # nothing is built, so nothing is kept
    report = repo.check(against="main")
    assert report.ok and report.models == {"net": "unchanged"}


def test_nothing_is_checked_twice_or_not_at_all(repo: Repo) -> None:
    assert repo.check(build=False).models == {"net": "lock"}
    (repo.root / "ckpt/releases/net/1.0.tree").unlink()
    report = repo.check(build=False)
    assert report.exit_code == 2 and "nothing was compared" in report.problems[0]
