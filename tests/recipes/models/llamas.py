"""LLaMA as several libraries store it: forward passes on their own state dicts.

Sources: Meta's `llama3/model.py` (llama_models 0.3), LitGPT 0.5.13 `model.py`, gpt-fast `model.py`,
torchtune 0.6.1 `modules/attention.py`, `modules/position_embeddings.py`, `models/qwen2/_positional_embeddings.py`,
InternLM2 `modeling_internlm2.py`, Qwen `modeling_qwen.py`, megatron-core 0.11 `transformer/attention.py`, `mlp.py`,
ChatGLM3 `modeling_chatglm.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch.nn.functional import gelu, silu

from tests.recipes.models.parts import (
    attention,
    depth,
    heads,
    linear,
    rms_norm,
    turn_halves,
    turn_pairs,
)

EPS = 1e-5


@dataclass(frozen=True)
class Names:
    """Where a library keeps the parts; those of a block are below ``block``."""

    embedding: str
    block: str
    norm_1: str
    out: str
    norm_2: str
    gate: str
    up: str
    down: str
    norm: str
    head: str


def forward(state, ids, names: Names, qkv: Callable, turn: Callable, theta=10000.0):
    """``qkv(state, block, x)`` gives q, k and v by head; ``turn`` is the rotary embedding."""
    x = state[names.embedding][ids]
    for i in range(depth(state, names.block + names.norm_1)):
        at = names.block.format(i)
        q, k, v = qkv(state, at, rms_norm(x, state[at + names.norm_1], EPS))
        x = x + linear(state, at + names.out, attention(turn(q, theta), turn(k, theta), v))
        y = rms_norm(x, state[at + names.norm_2], EPS)
        gate, up = _gate_up(state, at, names, y)
        x = x + linear(state, at + names.down, silu(gate) * up)
    return linear(state, names.head, rms_norm(x, state[names.norm], EPS))


def _gate_up(state, at, names, y):
    """Without ``up`` one layer makes both, the gate first."""
    if not names.up:
        return linear(state, at + names.gate, y).chunk(2, -1)
    return linear(state, at + names.gate, y), linear(state, at + names.up, y)


def separate(pattern: str, n_heads: int, n_kv_heads: int):
    """q, k, v of three layers: ``attention.w{}``."""

    def qkv(state, at, y):
        counts = (n_heads, n_kv_heads, n_kv_heads)
        return [
            heads(linear(state, at + pattern.format(p), y), n) for p, n in zip("qkv", counts, strict=True)
        ]

    return qkv


def joined(name: str, n_heads: int, n_kv_heads: int, norms: str = ""):
    """One layer: all of q, then all of k, then all of v."""

    def qkv(state, at, y):
        fused = heads(linear(state, at + name, y), n_heads + 2 * n_kv_heads)
        q, k, v = fused.split((n_heads, n_kv_heads, n_kv_heads), -2)
        if norms and at + norms.format("q") + ".weight" in state:
            q = rms_norm(q, state[at + norms.format("q") + ".weight"], EPS)
            k = rms_norm(k, state[at + norms.format("k") + ".weight"], EPS)
        return q, k, v

    return qkv


def grouped(name: str, n_heads: int, n_kv_heads: int):
    """One layer: group by group some heads of q, their k and their v."""

    def qkv(state, at, y):
        per_group = n_heads // n_kv_heads
        fused = linear(state, at + name, y).view(*y.shape[:-1], n_kv_heads, per_group + 2, -1)
        q, k, v = fused.split((per_group, 1, 1), -2)
        return [part.flatten(2, 3) for part in (q, k, v)]

    return qkv


META = Names(
    "tok_embeddings.weight",
    "layers.{}.",
    "attention_norm.weight",
    "attention.wo",
    "ffn_norm.weight",
    "feed_forward.w1",
    "feed_forward.w3",
    "feed_forward.w2",
    "norm.weight",
    "output",
)
INTERNLM2 = replace(
    META, embedding="model.tok_embeddings.weight", block="model.layers.{}.", norm="model.norm.weight"
)
LITGPT = Names(
    "transformer.wte.weight",
    "transformer.h.{}.",
    "norm_1.weight",
    "attn.proj",
    "norm_2.weight",
    "mlp.fc_1",
    "mlp.fc_2",
    "mlp.proj",
    "transformer.ln_f.weight",
    "lm_head",
)
TORCHTUNE = Names(
    "tok_embeddings.weight",
    "layers.{}.",
    "sa_norm.scale",
    "attn.output_proj",
    "mlp_norm.scale",
    "mlp.w1",
    "mlp.w3",
    "mlp.w2",
    "norm.scale",
    "output",
)
QWEN1 = Names(
    "transformer.wte.weight",
    "transformer.h.{}.",
    "ln_1.weight",
    "attn.c_proj",
    "ln_2.weight",
    "mlp.w2",
    "mlp.w1",
    "mlp.c_proj",
    "transformer.ln_f.weight",
    "lm_head",
)
MEGATRON = Names(
    "embedding.word_embeddings.weight",
    "decoder.layers.{}.",
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_proj",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1",
    "",
    "mlp.linear_fc2",
    "decoder.final_layernorm.weight",
    "output_layer",
)
CHATGLM = Names(
    "transformer.embedding.word_embeddings.weight",
    "transformer.encoder.layers.{}.",
    "input_layernorm.weight",
    "self_attention.dense",
    "post_attention_layernorm.weight",
    "mlp.dense_h_to_4h",
    "",
    "mlp.dense_4h_to_h",
    "transformer.encoder.final_layernorm.weight",
    "transformer.output_layer",
)
MEGATRON_LOCAL = replace(MEGATRON, norm_1="input_layernorm.weight", norm_2="pre_mlp_layernorm.weight")


def meta(state, ids, **dims):
    return forward(state, ids, META, separate("attention.w{}", **dims), turn_pairs)


def gpt_fast(state, ids, **dims):
    return forward(state, ids, META, joined("attention.wqkv", **dims), turn_pairs)


def litgpt(state, ids, **dims):
    return forward(state, ids, LITGPT, joined("attn.qkv", norms="attn.norm_{}", **dims), turn_halves)


def litgpt_grouped(state, ids, **dims):
    return forward(state, ids, LITGPT, grouped("attn.attn", **dims), turn_halves)


def torchtune(state, ids, **dims):
    return forward(state, ids, TORCHTUNE, separate("attn.{}_proj", **dims), turn_pairs)


def torchtune_qwen2(state, ids, **dims):
    return forward(state, ids, TORCHTUNE, separate("attn.{}_proj", **dims), turn_halves)


def internlm2(state, ids, **dims):
    return forward(state, ids, INTERNLM2, grouped("attention.wqkv", **dims), turn_halves)


def qwen1(state, ids, **dims):
    return forward(state, ids, QWEN1, joined("attn.c_attn", **dims), turn_halves)


def megatron(state, ids, names=MEGATRON, **dims):
    return forward(state, ids, names, grouped("self_attention.linear_qkv", **dims), turn_halves)


def megatron_local(state, ids, **dims):
    return megatron(state, ids, MEGATRON_LOCAL, **dims)


def chatglm(state, ids, **dims):
    """Half of each head's rows are rotary."""
    qkv = joined("self_attention.query_key_value", **dims)
    return forward(state, ids, CHATGLM, qkv, lambda x, theta: turn_pairs(x, theta, x.shape[-1] // 2))


def olmo2(state, ids, **dims):
    """LitGPT: norms behind attention and MLP, and over all heads of q and of k."""
    x = state[LITGPT.embedding][ids]
    for i in range(depth(state, "transformer.h.{}.attn.qkv.weight")):
        at = f"transformer.h.{i}."
        q, k, v = joined("attn.qkv", **dims)(state, at, x)
        q, k = (
            rms_norm(y.flatten(2), state[f"{at}attn.norm_{p}.weight"], EPS).view_as(y)
            for p, y in (("q", q), ("k", k))
        )
        y = linear(state, at + "attn.proj", attention(turn_halves(q), turn_halves(k), v))
        x = x + rms_norm(y, state[at + "post_attention_norm.weight"], EPS)
        y = silu(linear(state, at + "mlp.fc_1", x)) * linear(state, at + "mlp.fc_2", x)
        x = x + rms_norm(linear(state, at + "mlp.proj", y), state[at + "post_mlp_norm.weight"], EPS)
    return linear(state, "lm_head", rms_norm(x, state["transformer.ln_f.weight"], EPS))


def gemma(state, ids, **dims):
    """The normalised last states. Source: google/gemma_pytorch `gemma/model.py`."""
    x = state["embedder.weight"][ids]
    x = x * x.shape[-1] ** 0.5
    for i in range(depth(state, "model.layers.{}.input_layernorm.weight")):
        at = f"model.layers.{i}."
        y = rms_norm(x, 1 + state[at + "input_layernorm.weight"], EPS)
        q, k, v = joined("self_attn.qkv_proj", **dims)(state, at, y)
        x = x + linear(state, at + "self_attn.o_proj", attention(turn_halves(q), turn_halves(k), v))
        y = rms_norm(x, 1 + state[at + "post_attention_layernorm.weight"], EPS)
        gate = gelu(linear(state, at + "mlp.gate_proj", y), approximate="tanh")
        x = x + linear(state, at + "mlp.down_proj", gate * linear(state, at + "mlp.up_proj", y))
    return rms_norm(x, 1 + state["model.norm.weight"], EPS)
