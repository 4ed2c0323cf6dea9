"""Real pairs of libraries: the plan is exact, short, and reads as a person would have written it."""

from __future__ import annotations

import pytest

from ckptdoctor.plan import expand, from_toml, to_toml
from ckptdoctor.planner import make_plan
from tests.plan.cases import NAMES, load

READABLE = {
    "T2_resnet50_hf_to_timm": (
        7,
        "resnet.encoder.stages.{i}.layers.{j}.layer.{k}.normalization.* -> layer{i+1}.{j}.bn{k+1}.*",
    ),
    "T4_vit_timm_to_tv": (11, "blocks.{i}.mlp.fc1.* -> encoder.layers.encoder_layer_{i}.mlp.0.*"),
    "T2_densenet121_old_names": (
        3,
        "features.denseblock{i}.denselayer{j}.norm.{k}.* -> features.denseblock{i}.denselayer{j}.norm{k}.*",
    ),
    "T5_gpt2_hf_to_nanogpt": (
        4,
        "transformer.h.{i}.mlp.c_fc.weight -> transformer.h.{i}.mlp.c_fc.weight by transpose(0,1)",
    ),
    "T5_vit_hf_to_timm": (
        10,
        "vit.layers.{i}.attention.{q_proj,k_proj,v_proj}.* -> blocks.{i}.attn.qkv.* by concat(0)",
    ),
    "T5_hf_v4_to_v5_mixtral": (
        3,
        "model.layers.{i}.block_sparse_moe.experts.{0..3}.w2.weight"
        " -> model.layers.{i}.mlp.experts.down_proj by stack(0)",
    ),
    "T2_bert_gamma_beta_to_hf": (3, "**.gamma -> **.weight"),
    "T3_sequential_dropout_index_shift": (5, "{i:3..4}.* -> {i+1}.*"),
    "T1_ddp_resnet18_tv": (1, "module.** -> **"),
}


def words(step: object) -> str:
    op = getattr(step, "op", "")
    if op == "rename":
        return f"{step.from_} -> {step.to}"
    if op == "transform":
        return f"{', '.join(step.from_)} -> {', '.join(step.to)} by {', '.join(step.apply)}"
    return op


@pytest.mark.parametrize("name", sorted(READABLE))
def test_plans_are_short_and_readable(name: str) -> None:
    alignment, source, target = load(name)
    made = make_plan(alignment, source, target, file="a.pth", model_label="m.py")
    steps, line = READABLE[name]
    assert line in [words(s) for s in made.step]
    assert len(made.step) <= steps


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_exact_and_short(name: str) -> None:
    alignment, source, target = load(name)
    made = make_plan(alignment, source, target, file="a.pth", model_label="m.py")
    assert from_toml(to_toml(made)) == made
    # make_plan compares key by key; here the sum, and that nothing is written out key by key.
    filled = [m for m in alignment.matches.values() if m.status in ("safe", "kept")]
    result = made.result
    assert result.loaded + result.kept + result.tied + result.reinitialised == len(filled)
    assert len(made.step) <= 45
    assert made.complete == (len(filled) == len(target) and all(u.decided for u in alignment.unused.values()))
    if made.complete:
        expansion = expand(made, source, target)
        loaded = [f for f in expansion.fills.values() if f.kind == "load"]
        assert all(f.sources == alignment.matches[f.target].sources for f in loaded)


def test_there_are_real_cases() -> None:
    assert len(NAMES) > 50
