"""lint, repair --lint-fix, strip and extract, as a person runs them."""

from __future__ import annotations

import argparse
import datetime
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckptdoctor.api import inspect
from ckptdoctor.cli.commands import group
from ckptdoctor.cli.running import run
from ckptdoctor.training.lint import lint
from tests.training.zoo import Old, batches, seeded, train


def command(*args: object) -> int:
    return run(group, [str(a) for a in args])


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A file with every habit."""
    model = nn.DataParallel(seeded(Old))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, batches(2))
    state = dict(model.state_dict())  # a plain dict loses _metadata
    state["module.embed.weight"] = torch.randn(2000, 50)[:8, :5]  # a view of a large storage, with strides
    state["module.head.bias"] = state["module.head.bias"].double()
    contents = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(data="/home/alice/sets/imagenet", lr=0.1, out=Path("/scratch/alice/run7")),
        "user": "alice",
        "epoch": 3,
    }
    torch.save(contents, tmp_path / "bad.pth")
    return tmp_path / "bad.pth"


def codes(path: Path, deep: bool = False) -> set[str]:
    return {d.code for d in lint(inspect(path), deep=deep)}


def test_every_habit_is_found(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert codes(bad) == {"CKD403", "CKD604", "CKD801", "CKD802", "CKD803", "CKD804", "CKD805", "CKD806"}
    assert command("lint", bad) == 1
    shown = capsys.readouterr().out
    assert f"ckptdoctor repair {bad} --lint-fix -o OUT" in shown
    assert f"ckptdoctor strip {bad} -o OUT" in shown
    assert "/home/alice/sets/imagenet" in shown


def test_every_finding_has_a_command_or_a_reason(bad: Path) -> None:
    for found in lint(inspect(bad)):
        assert found.helps or found.code == "CKD604", found
        assert found.why


def test_lint_fix_mends_all_that_needs_no_model_and_loses_no_value(bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "good.pth"
    assert command("repair", bad, "--lint-fix", "-o", out) == 0
    assert codes(out) == {
        "CKD604",
        "CKD802",
        "CKD804",
    }  # notes: an optimizer, and dtypes only a model decides
    old = torch.load(bad, weights_only=False)
    new = torch.load(out, weights_only=True)
    assert list(new) == list(old)
    assert [f"module.{k}" for k in new["model"]] == list(old["model"])
    assert all(torch.equal(new["model"][k.removeprefix("module.")], v) for k, v in old["model"].items())
    assert new["model"]._metadata["bn"] == {"version": 2}
    assert new["args"] == {"data": "imagenet", "lr": 0.1, "out": "run7"}
    assert (new["user"], new["epoch"]) == ("", 3)
    assert same(new["optimizer"], old["optimizer"])
    assert out.stat().st_size < bad.stat().st_size / 10
    assert command("repair", out, "--lint-fix", "-o", tmp_path / "again.pth") == 0
    assert same(torch.load(tmp_path / "again.pth", weights_only=True), new)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_pickled_module_becomes_its_state_dict(tmp_path: Path) -> None:
    model = seeded(Old)
    torch.save({"model": model, "when": datetime.date(2026, 1, 2)}, tmp_path / "module.pth")
    assert {"CKD402"} <= codes(tmp_path / "module.pth")
    out = tmp_path / "out.pth"
    assert command("strip", tmp_path / "module.pth", "-o", out) == 0
    model.load_state_dict(torch.load(out, weights_only=True), strict=True)


def test_what_cannot_be_kept_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {"state_dict": seeded(Old).state_dict(), "when": datetime.date(2026, 1, 2)}, tmp_path / "a.pth"
    )
    assert command("repair", tmp_path / "a.pth", "--lint-fix", "-o", tmp_path / "b.pth") == 2
    error = capsys.readouterr().err
    assert "`when` is an object of the class datetime.date" in error
    assert f"ckptdoctor strip {tmp_path / 'a.pth'}" in error
    assert not (tmp_path / "b.pth").exists()


def test_nan_is_found_with_deep_only(tmp_path: Path) -> None:
    state = seeded(Old).state_dict()
    state["head.bias"] = torch.tensor([1.0, float("nan"), 2.0])
    torch.save(state, tmp_path / "nan.pth")
    assert "CKD406" not in codes(tmp_path / "nan.pth")
    assert "CKD406" in codes(tmp_path / "nan.pth", deep=True)


def test_a_clean_file_has_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(seeded(Old).state_dict(), tmp_path / "clean.pth")
    assert command("lint", tmp_path / "clean.pth") == 0
    assert "nothing that will be regretted" in capsys.readouterr().out


def test_only_some_wrapped_keys_are_not_stripped(tmp_path: Path) -> None:
    state = OrderedDict({"module.a.weight": torch.ones(2), "b.weight": torch.ones(3)})
    torch.save(state, tmp_path / "mixed.pth")
    (found,) = (d for d in lint(inspect(tmp_path / "mixed.pth")) if d.code == "CKD801")
    assert found.fix is None and not found.helps
    assert command("repair", tmp_path / "mixed.pth", "--lint-fix", "-o", tmp_path / "out.pth") == 0
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == list(state)


def test_a_relative_path_and_a_formula_are_not_private(tmp_path: Path) -> None:
    more = {"config": "configs/a/b.yaml", "formula": "a / b / c", "url": "https://example.org/a/b"}
    torch.save({"state_dict": seeded(Old).state_dict(), **more}, tmp_path / "a.pth")
    assert "CKD805" not in codes(tmp_path / "a.pth")


def test_strip_writes_weights_that_plain_torch_loads(bad: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert command("strip", bad, "-o", tmp_path / "w.safetensors") == 0
    assert command("strip", bad, "-o", tmp_path / "w.pth") == 0
    pth, safe = torch.load(tmp_path / "w.pth", weights_only=True), load_file(tmp_path / "w.safetensors")
    assert set(pth) == set(safe) == set(Old().state_dict())
    assert all(torch.equal(pth[k], safe[k]) for k in pth)


def test_extract_takes_one_submodule(bad: Path, tmp_path: Path) -> None:
    assert command("extract", bad, "bn", "-o", tmp_path / "bn.pth") == 0
    state = torch.load(tmp_path / "bn.pth", weights_only=True)
    nn.BatchNorm1d(4).load_state_dict(state, strict=True)
    assert state._metadata[""] == {"version": 2}
    assert command("extract", bad, "bn", "--keep-prefix", "-o", tmp_path / "kept.pth") == 0
    assert all(k.startswith("bn.") for k in torch.load(tmp_path / "kept.pth", weights_only=True))


def test_extract_of_what_is_not_there_names_what_is(
    bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("extract", bad, "backbone", "-o", tmp_path / "x.pth") == 2
    assert "no key is under `backbone.`; there are `embed.`, `attn.`" in capsys.readouterr().err
    assert command("extract", bad, "-o", tmp_path / "x.pth") == 2
    assert command("strip", bad, "-o", bad) == 2
    assert command("repair", bad, "-o", tmp_path / "x.pth") == 2
    assert command("repair", bad, bad, "--lint-fix", "-o", tmp_path / "x.pth") == 2
    assert not (tmp_path / "x.pth").exists()
