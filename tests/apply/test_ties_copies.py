"""A tensor left out as a copy of a tied one has to be that copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ckptdoctor as ckd


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.fc = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 20, bias=False)
        self.lm_head.weight = self.wte.weight


def saved(path: Path, output: torch.Tensor, embed: torch.Tensor) -> Path:
    torch.save(
        {
            "embed.weight": embed,
            "fc.weight": torch.randn(8, 8),
            "fc.bias": torch.randn(8),
            "output.weight": output,
        },
        path,
    )
    return path


def test_an_equal_copy_is_left_out(tmp_path: Path) -> None:
    embed, model = torch.randn(20, 8), Tied()
    ckd.auto_load(model, saved(tmp_path / "a.pth", embed.clone(), embed))
    assert torch.equal(model.wte.weight, embed)
    assert model.lm_head.weight is model.wte.weight


def test_a_different_copy_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    embed, model = torch.randn(20, 8), Tied()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = saved(tmp_path / "a.pth", embed + 1, embed)
    with pytest.raises(ckd.CkptDoctorError, match=r"output\.weight.*copy.*embed\.weight"):
        ckd.auto_load(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    ckd.auto_load(model, path, decisions=["drop=output.weight"])
    assert torch.equal(model.wte.weight, embed)
