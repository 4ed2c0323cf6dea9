"""LLaMA and its relatives, as many libraries keep them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.recipes.applier import convert
from tests.recipes.case import IDS, Case, Forward, Transformers
from tests.recipes.models import llamas

LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 11,
    "rms_norm_eps": llamas.EPS,
    "tie_word_embeddings": False,
}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
DIMS = {"n_heads": 6, "n_kv_heads": 2}


def llama(recipe: str, a: Callable[..., Tensor], title: str, cls: str = "Llama", **more: Any) -> Case:
    """One of transformers' relatives of LLaMA on side b."""
    plain, root_a, skip = more.pop("plain", False), more.pop("root_a", ""), more.pop("skip", ())
    config = {**LLAMA, **more}
    heads = {"n_heads": config["num_attention_heads"], "n_kv_heads": config["num_key_value_heads"]}
    facts = {k: config[k] for k in HEADS}
    b = Transformers(f"{cls}ForCausalLM", **config)
    return Case(recipe, title, lambda s: a(s, IDS, **heads), b, b.state, facts, root_a, "model.", plain, skip)


def between(
    recipe: str, through: str, a: Callable[..., Tensor], b: Callable[..., Tensor], plain: bool = False
) -> Case:
    """Neither side is transformers': the first state dict of b comes through another recipe."""
    llama = Transformers("LlamaForCausalLM", **LLAMA)

    def state() -> dict[str, Tensor]:
        return convert(through, "b", llama.state(), HEADS, {"a": "", "b": "model."})

    def run(forward: Callable[..., Tensor]) -> Forward:
        return lambda s: forward(s, IDS, **DIMS)

    return Case(recipe, "grouped queries", run(a), run(b), state, HEADS, plain=plain)


PHI3 = Transformers("Phi3ForCausalLM", **LLAMA, pad_token_id=None)


def phi3() -> Case:
    b = Transformers("LlamaForCausalLM", **LLAMA)
    return Case("phi3-llama", "grouped queries", PHI3, b, b.state, HEADS, "model.", "model.", plain=True)


def phi3_litgpt() -> Case:
    def a(state: dict[str, Tensor]) -> Tensor:
        return llamas.litgpt(state, IDS, **DIMS)

    return Case("litgpt-phi3", "grouped queries", a, PHI3, PHI3.state, HEADS, "", "model.", plain=True)


def gemma() -> Case:
    model = Transformers("GemmaModel", **LLAMA, head_dim=8, pad_token_id=None)

    def a(state: dict[str, Tensor]) -> Tensor:
        return llamas.gemma(state, IDS, **DIMS)

    def b(state: dict[str, Tensor]) -> Tensor:
        return model.run(state, IDS).last_hidden_state

    return Case("gemma-pytorch", "grouped queries", a, b, model.state, HEADS, "model.", plain=True)


CASES = [
    llama("llama-meta", llamas.meta, "grouped queries"),
    llama("llama-meta", llamas.meta, "Mistral with its own head size", "Mistral", head_dim=12),
    llama("litgpt-llama", llamas.litgpt, "grouped queries", plain=True),
    llama("litgpt-llama", llamas.litgpt, "Qwen2: biases of q, k, v", "Qwen2", plain=True),
    llama("litgpt-llama", llamas.litgpt, "Qwen3: norms of q, k", "Qwen3", head_dim=8, plain=True),
    llama("litgpt-llama-grouped", llamas.litgpt_grouped, "grouped queries"),
    llama("litgpt-llama-grouped", llamas.litgpt_grouped, "Qwen2: biases of q, k, v", "Qwen2"),
    between("litgpt-qkv", "litgpt-llama", llamas.litgpt_grouped, llamas.litgpt),
    between("llama-meta-litgpt", "litgpt-llama", llamas.meta, llamas.litgpt),
    between("llama-meta-litgpt-grouped", "litgpt-llama-grouped", llamas.meta, llamas.litgpt_grouped),
    llama("gpt-fast-llama", llamas.gpt_fast, "grouped queries"),
    llama("torchtune-llama", llamas.torchtune, "grouped queries"),
    llama("torchtune-qwen2", llamas.torchtune_qwen2, "biases of q, k, v", "Qwen2", plain=True),
    llama("internlm2-llama", llamas.internlm2, "grouped queries"),
    phi3(),
    llama(
        "megatron-core-llama",
        llamas.megatron,
        "norms inside the layers",
        skip=("decoder.layers.{i}.input_layernorm", "pre_mlp"),
    ),
    llama(
        "megatron-core-llama", llamas.megatron_local, "norms beside the layers", skip=("layer_norm_weight",)
    ),
    llama(
        "qwen1-llama",
        llamas.qwen1,
        "Qwen2: biases of q, k, v",
        "Qwen2",
        num_key_value_heads=6,
        root_a="transformer.",
        plain=True,
    ),
    llama(
        "chatglm-glm",
        llamas.chatglm,
        "grouped queries",
        "Glm",
        root_a="transformer.",
        head_dim=8,
        pad_token_id=None,
        attention_bias=True,
        plain=True,
    ),
    between("llama-meta-torchtune", "torchtune-llama", llamas.meta, llamas.torchtune, plain=True),
    between("llama-meta-gpt-fast", "gpt-fast-llama", llamas.meta, llamas.gpt_fast, plain=True),
    phi3_litgpt(),
    gemma(),
    llama("litgpt-olmo2", llamas.olmo2, "grouped queries", "Olmo2", plain=True),
]
