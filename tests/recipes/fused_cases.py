"""Decoders with fused q, k and v or layer norms: GPT-2, GPT-NeoX, BLOOM, Falcon, CodeGen; and TransformerLens."""

from typing import Any

from torch import Tensor
from torch.nn.functional import gelu

from tests.recipes.applier import convert
from tests.recipes.case import IDS, Case, Transformers
from tests.recipes.llama_cases import LLAMA
from tests.recipes.models import lens as lens_model
from tests.recipes.models import litgpt_layernorm, megatron_gpt

NEOX = {k: LLAMA[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}
FALCON = {**NEOX, "bias": False, "alibi": False, "tie_word_embeddings": False}


def neox(recipe: str, old: bool) -> Case:
    b = PYTHIA

    def a(state: dict[str, Tensor]) -> Tensor:
        return litgpt_layernorm.litgpt(state, IDS, 6, 6, rotary=4, old=old)

    facts = {"num_attention_heads": 6}
    return Case(recipe, "Pythia", a, b, b.state, facts, "", "gpt_neox.", plain=old, skip=("embed_out",))


def falcon(recipe: str, title: str, kv_heads: int, old: bool, **config: Any) -> Case:
    b = Transformers("FalconForCausalLM", **FALCON, ffn_hidden_size=40, **config)

    def a(state: dict[str, Tensor]) -> Tensor:
        return litgpt_layernorm.litgpt(state, IDS, 6, kv_heads, rotary=8, old=old)

    skip = ("input_layernorm",) if "num_kv_heads" in config else ("ln_attn", "ln_mlp")
    facts = {
        "num_attention_heads": 6
    }  # the 7B model's configuration says as many for k and v, which is not so
    return Case(recipe, title, a, b, b.state, facts, "", "transformer.", old or kv_heads == 1, skip)


FALCON_7B = {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}
FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
FALCON_MHA = {"multi_query": False, "new_decoder_architecture": False, "parallel_attn": True}


def lens(
    recipe: str, title: str, root: str, a: Transformers, skip: tuple[str, ...] = (), **model: Any
) -> Case:
    """TransformerLens on side b; its own state dict comes through the recipe, then gets other values."""
    facts = {"num_attention_heads": model.pop("heads", 6)}
    if recipe == "transformer-lens-llama":
        facts["rms_norm_offset"] = 0

    def state() -> dict[str, Tensor]:
        return convert(recipe, "a", a.state(), facts, {"a": root, "b": ""}, skip)

    return Case(
        recipe, title, a, lambda s: lens_model.forward(s, IDS, **model), state, facts, root, skip=skip
    )


GPT2 = Transformers(
    "GPT2LMHeadModel", n_embd=48, n_inner=40, n_layer=2, n_head=6, vocab_size=11, n_positions=9,
    tie_word_embeddings=False,
)  # fmt: skip
BLOOM = Transformers(
    "BloomForCausalLM", hidden_size=48, n_layer=2, n_head=4, vocab_size=11, tie_word_embeddings=False
)
PYTHIA = Transformers(
    "GPTNeoXForCausalLM", **NEOX, intermediate_size=40, rotary_pct=0.5, tie_word_embeddings=False
)


MEGATRON_NORMS = ("input_norm", "post_attention_norm", "final_norm")


def megatron(version: int, recipe: str = "megatron-gpt2", **names: str) -> Case:
    gpt2 = Transformers("GPT2Model", n_embd=48, n_inner=40, n_layer=2, n_head=6, vocab_size=11, n_positions=9)

    def a(state: dict[str, Tensor]) -> Tensor:
        return megatron_gpt.forward(state, IDS, 6, version, **names)

    def b(state: dict[str, Tensor]) -> Tensor:
        return gpt2.run(state, IDS).last_hidden_state

    facts = {"num_attention_heads": 6, "checkpoint_version": version}
    return Case(recipe, f"checkpoint_version {version}", a, b, gpt2.state, facts, skip=MEGATRON_NORMS)


def codegen() -> Case:
    config = {"n_embd": 48, "n_inner": 40, "n_layer": 2, "n_head": 4, "rotary_dim": 6, "n_positions": 9}
    config |= {"vocab_size": 11, "tie_word_embeddings": False}
    a, b = (Transformers(f"{name}ForCausalLM", **config) for name in ("CodeGen", "GPTJ"))
    return Case("codegen-gptj", "partial rotary", a, b, b.state, {}, "transformer.", "transformer.")


CASES = [
    neox("litgpt-gpt-neox", old=False),
    neox("litgpt-gpt-neox-grouped", old=True),
    falcon("litgpt-falcon", "7B: one k and v", 1, False, **FALCON_7B),
    falcon("litgpt-falcon", "40B: groups", 2, False, **FALCON_40B),
    falcon("litgpt-falcon", "a k and v for each head", 6, False, **FALCON_MHA),
    falcon("litgpt-falcon-grouped", "7B: one k and v", 1, True, **FALCON_7B),
    falcon("litgpt-falcon-grouped", "40B: groups", 2, True, **FALCON_40B),
    lens("transformer-lens-gpt2", "GPT-2", "transformer.", GPT2, act=lens_model.gelu_new),
    lens(
        "transformer-lens-gpt-neox",
        "Pythia",
        "gpt_neox.",
        PYTHIA,
        ("embed_out",),
        act=gelu,
        rotary=4,
        parallel=True,
    ),
    lens(
        "transformer-lens-llama",
        "grouped queries",
        "model.",
        Transformers("LlamaForCausalLM", **LLAMA),
        ("attn.W_K", "attn.W_V", "attn.b_K", "attn.b_V"),
        rotary=8,
    ),
    lens(
        "transformer-lens-llama",
        "as many heads for k and v",
        "model.",
        Transformers("LlamaForCausalLM", **{**LLAMA, "num_key_value_heads": 6}),
        ("_W_", "_b_"),
        rotary=8,
    ),
    lens(
        "transformer-lens-llama",
        "Qwen2: biases of q, k, v",
        "model.",
        Transformers("Qwen2ForCausalLM", **LLAMA),
        ("attn.W_K", "attn.W_V", "attn.b_K", "attn.b_V"),
        rotary=8,
    ),
    lens(
        "transformer-lens-bloom",
        "BLOOM",
        "transformer.",
        BLOOM,
        heads=4,
        act=lens_model.bloom_gelu,
        with_alibi=True,
    ),
    *(megatron(version) for version in range(4)),
    megatron(0, "megatron-gpt2-2", trunk="transformer", attn="attention"),
    codegen(),
]
