"""Reparametrised weights, end to end: found, asked about, folded once decided, and the network agrees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ckptdoctor import auto_load, diagnose
from ckptdoctor.errors import UndecidedError


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def convs() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


def agree(a: nn.Module, b: nn.Module, x: torch.Tensor, tolerance: float = 1e-5) -> bool:
    with torch.no_grad():
        return torch.allclose(a.eval()(x), b.eval()(x), atol=tolerance)


IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def asks(model: nn.Module, path: Path, flag: str) -> None:
    """The question names the flag, and the model is as it was."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UndecidedError) as error:
        auto_load(model, path)
    assert flag in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("wrap", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_is_folded_when_accepted(tmp_path, wrap):
    trained = convs()
    for layer in trained:
        if isinstance(layer, nn.Conv2d):
            wrap(layer)
    trained(IMAGE)  # a step of power iteration in training mode
    path = saved(trained, tmp_path / "sn.pth")
    plain = convs()
    asks(plain, path, "accept=spectral_norm")
    auto_load(plain, path, decisions=["accept=spectral_norm"])
    assert agree(trained, plain, IMAGE)
    # what a copy of the original weight would have given
    assert not torch.allclose(
        plain[0].weight,
        dict(trained[0].named_parameters()).get(
            "weight_orig", getattr(trained[0], "weight_orig", torch.zeros_like(plain[0].weight))
        ),
    )


def test_pruning_masks_are_folded_when_accepted(tmp_path):
    trained = convs()
    for i in (0, 2, 4):
        prune.random_unstructured(trained[i], "weight", 0.5)
        prune.random_unstructured(trained[i], "bias", 0.5)
    path = saved(trained, tmp_path / "pruned.pth")
    plain = convs()
    asks(plain, path, "accept=pruning")
    auto_load(plain, path, decisions=["accept=pruning"])
    assert agree(trained, plain, IMAGE)
    assert (plain[2].weight == 0).float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_plain_weight_becomes_direction_and_length(tmp_path, dim):
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(3, 6, 5), nn.Tanh(), nn.Conv1d(6, 4, 3))

    trained = net()
    path = saved(trained, tmp_path / "plain.pth")
    normed = net()
    for i in (0, 2):
        parametrizations.weight_norm(normed[i], dim=dim)
    asks(normed, path, "accept=weight_norm")
    auto_load(normed, path, decisions=["accept=weight_norm"])
    assert agree(trained, normed, torch.randn(2, 3, 20))


def test_weight_norm_old_to_new_and_to_plain_needs_no_decision(tmp_path):
    trained = nn.Sequential(weight_norm(nn.Conv1d(3, 6, 5)), nn.Tanh(), weight_norm(nn.Conv1d(6, 4, 3)))
    path = saved(trained, tmp_path / "wn.pth")
    plain = nn.Sequential(nn.Conv1d(3, 6, 5), nn.Tanh(), nn.Conv1d(6, 4, 3))
    auto_load(plain, path)
    assert agree(trained, plain, torch.randn(2, 3, 20))
    new = nn.Sequential(nn.Conv1d(3, 6, 5), nn.Tanh(), nn.Conv1d(6, 4, 3))
    for i in (0, 2):
        parametrizations.weight_norm(new[i])
    auto_load(new, path)
    assert agree(trained, new, torch.randn(2, 3, 20))


class Block(nn.Module):
    def __init__(self, folded: bool, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=folded or bias)
        self.conv2 = nn.Conv2d(8, 8, 3, groups=2, bias=folded or bias)
        if not folded:
            self.bn1, self.bn2 = nn.BatchNorm2d(8, eps=1e-3), nn.BatchNorm2d(8, eps=1e-3)
        self.folded = folded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x) if self.folded else self.bn1(self.conv1(x))
        x = torch.relu(x)
        return self.conv2(x) if self.folded else self.bn2(self.conv2(x))


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norms_are_folded_with_the_eps_that_is_given(tmp_path, bias):
    trained = Block(folded=False, bias=bias)
    for _ in range(3):
        trained(torch.randn(4, 3, 12, 12))
    path = saved(trained, tmp_path / "bn.pth")
    fused = Block(folded=True)
    asks(fused, path, "value=batch_norm_eps=1e-05")
    auto_load(fused, path, decisions=["value=batch_norm_eps=0.001"])
    assert agree(trained, fused, IMAGE)


def test_a_fused_checkpoint_does_not_go_back_into_batch_norms(tmp_path):
    path = saved(Block(folded=True), tmp_path / "fused.pth")
    model = Block(folded=False)
    assert diagnose(model, path).verdict in ("undecided", "incompatible")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(16, 16), nn.Linear(16, 16)
        self.v_proj, self.o_proj = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(self.q_proj(x) * self.k_proj(x) + self.v_proj(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.layers = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x


def peft_state(model: Net, rank: int = 4) -> dict[str, torch.Tensor]:
    """The full state dict of ``get_peft_model`` with q and v as targets, in PEFT's names."""
    state = {}
    for key, value in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        wrapped = module.endswith(("q_proj", "v_proj"))
        state[f"base_model.model.{module}{'.base_layer' if wrapped else ''}.{leaf}"] = value
        if wrapped and leaf == "weight":
            state[f"base_model.model.{module}.lora_A.default.weight"] = torch.randn(rank, 16)
            state[f"base_model.model.{module}.lora_B.default.weight"] = torch.randn(16, rank)
    return state


def test_a_lora_adapter_is_merged_with_alpha(tmp_path):
    base = Net()
    state = peft_state(base)
    torch.save(state, tmp_path / "peft.pth")
    model = Net()
    asks(model, tmp_path / "peft.pth", "value=lora_alpha=N")
    auto_load(model, tmp_path / "peft.pth", decisions=["value=lora_alpha=8"])
    a, b = (state[f"base_model.model.layers.1.q_proj.lora_{n}.default.weight"] for n in "AB")
    assert torch.allclose(
        model.layers[1].q_proj.weight, base.layers[1].q_proj.weight + 2.0 * (b @ a), atol=1e-5
    )
    assert torch.equal(model.layers[1].k_proj.weight, base.layers[1].k_proj.weight)
    assert torch.equal(model.layers[0].q_proj.bias, base.layers[0].q_proj.bias)


def test_alpha_is_read_from_the_adapters_configuration(tmp_path):
    base = Net()
    state = peft_state(base)
    torch.save(state, tmp_path / "peft.pth")
    config = {"lora_alpha": 8, "r": 4, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = Net()
    asks(model, tmp_path / "peft.pth", "accept=lora")
    auto_load(model, tmp_path / "peft.pth", decisions=["accept=lora"])
    a, b = (state[f"base_model.model.layers.0.v_proj.lora_{n}.default.weight"] for n in "AB")
    due = base.layers[0].v_proj.weight + 8 / 4**0.5 * (b @ a)  # rank-stabilised
    assert torch.allclose(model.layers[0].v_proj.weight, due, atol=1e-5)


def test_an_adapter_can_be_left_out_by_decision(tmp_path):
    base = Net()
    torch.save(peft_state(base), tmp_path / "peft.pth")
    model = Net()
    auto_load(model, tmp_path / "peft.pth", decisions=["drop=**.lora_A.**", "drop=**.lora_B.**"])
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("scale", "name"),
    [((), "weight_scale"), ((16, 1), "weight_scale"), ((1, 1), "weight_scale_inv")],
)
def test_float8_weights_are_multiplied_with_their_scale(tmp_path, scale, name):
    wanted = Net()
    state = {}
    for key, value in wanted.state_dict().items():
        if key.endswith("proj.weight"):
            factor = torch.rand(scale) + 0.5
            state[key] = (value / factor).to(torch.float8_e4m3fn)
            state[f"{key.removesuffix('weight')}{name}"] = factor
        else:
            state[key] = value
    torch.save(state, tmp_path / "fp8.pth")
    model = Net()
    asks(model, tmp_path / "fp8.pth", "accept=low-bit")
    auto_load(model, tmp_path / "fp8.pth", decisions=["accept=low-bit"])
    key = "layers.0.q_proj.weight"
    factor = state[f"layers.0.q_proj.{name}"]
    assert torch.equal(model.state_dict()[key], state[key].float() * factor)


def test_query_and_value_biases_become_the_fused_bias(tmp_path):
    class Fused(nn.Module):
        def __init__(self, split: bool) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 48, bias=not split)
            self.proj = nn.Linear(16, 16)
            if split:
                self.q_bias = nn.Parameter(torch.randn(16))
                self.v_bias = nn.Parameter(torch.randn(16))

    class Two(nn.Module):
        def __init__(self, split: bool) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Fused(split)}) for _ in range(2))

    source, model = Two(True), Two(False)
    path = saved(source, tmp_path / "beit.pth")
    asks(model, path, "accept=zero_k_bias")
    auto_load(model, path, decisions=["accept=zero_k_bias"])
    attention = source.blocks[1]["attn"]
    due = torch.cat([attention.q_bias, torch.zeros(16), attention.v_bias])
    assert torch.equal(model.blocks[1]["attn"].qkv.bias, due)
