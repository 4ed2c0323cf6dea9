"""RepVGG: training blocks become the deployed convolutions; the way back is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ckptdoctor import auto_load
from ckptdoctor.errors import UndecidedError

EPS = 1e-4


class Branch(nn.Module):
    def __init__(self, into: int, out: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class Block(nn.Module):
    """RepVGGBlock of the reference implementation, written from its paper."""

    def __init__(self, into: int, out: int, stride: int, deploy: bool) -> None:
        super().__init__()
        if deploy:
            self.rbr_reparam = nn.Conv2d(into, out, 3, stride, 1)
            return
        self.rbr_identity = nn.BatchNorm2d(into, eps=EPS) if into == out and stride == 1 else None
        self.rbr_dense, self.rbr_1x1 = Branch(into, out, 3, stride), Branch(into, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "rbr_reparam"):
            return torch.relu(self.rbr_reparam(x))
        shortcut = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return torch.relu(self.rbr_dense(x) + self.rbr_1x1(x) + shortcut)


class RepVgg(nn.Module):
    def __init__(self, deploy: bool) -> None:
        super().__init__()
        self.stage0 = Block(3, 8, 2, deploy)
        self.stage1 = nn.Sequential(Block(8, 8, 2, deploy), Block(8, 8, 1, deploy))
        self.stage2 = nn.Sequential(
            Block(8, 12, 2, deploy), Block(12, 12, 1, deploy), Block(12, 12, 1, deploy)
        )
        self.linear = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.stage2(self.stage1(self.stage0(x))).mean((2, 3)))


def trained() -> RepVgg:
    torch.manual_seed(5)
    model = RepVgg(deploy=False)
    for _ in range(3):
        model(torch.randn(8, 3, 32, 32) * 2 + 1)
    return model.eval()


def test_branches_are_summed_with_the_eps_that_is_given(tmp_path):
    source, model = trained(), RepVgg(deploy=True)
    torch.save(source.state_dict(), tmp_path / "train.pth")
    with pytest.raises(UndecidedError) as error:
        auto_load(model, tmp_path / "train.pth")
    assert "value=batch_norm_eps=N" in str(error.value)
    auto_load(model, tmp_path / "train.pth", decisions=[f"value=batch_norm_eps={EPS}"])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(source(x), model.eval()(x), atol=1e-5)


def test_a_deployed_block_is_not_taken_apart(tmp_path):
    torch.save(RepVgg(deploy=True).state_dict(), tmp_path / "deploy.pth")
    with pytest.raises(UndecidedError, match="get the file as trained"):
        auto_load(RepVgg(deploy=False), tmp_path / "deploy.pth")
