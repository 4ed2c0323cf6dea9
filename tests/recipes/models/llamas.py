"""LLaMA as several libraries store it: forward passes on their own state dicts.

Sources: Meta's `llama3/model.py` (llama_models 0.3), LitGPT 0.5.13 `model.py`.
"""

import torch
from torch.nn.functional import silu

from tests.recipes.models.parts import attention, depth, heads, linear, rms_norm, turn_halves, turn_pairs

EPS = 1e-5


def meta(state, ids, n_heads, n_kv_heads):
    x = state["tok_embeddings.weight"][ids]
    for i in range(depth(state, "layers.{}.attention_norm.weight")):
        at = f"layers.{i}."
        y = rms_norm(x, state[at + "attention_norm.weight"], EPS)
        q = heads(linear(state, at + "attention.wq", y), n_heads)
        k = heads(linear(state, at + "attention.wk", y), n_kv_heads)
        v = heads(linear(state, at + "attention.wv", y), n_kv_heads)
        x = x + linear(state, at + "attention.wo", attention(turn_pairs(q), turn_pairs(k), v))
        y = rms_norm(x, state[at + "ffn_norm.weight"], EPS)
        gate, up = linear(state, at + "feed_forward.w1", y), linear(state, at + "feed_forward.w3", y)
        x = x + linear(state, at + "feed_forward.w2", silu(gate) * up)
    return linear(state, "output", rms_norm(x, state["norm.weight"], EPS))


def litgpt(state, ids, n_heads, n_kv_heads, grouped=False):
    """``grouped``: before 0.5 `attn.attn` held, group by group, q heads and their k and v."""
    x = state["transformer.wte.weight"][ids]
    for i in range(depth(state, "transformer.h.{}.norm_1.weight")):
        at = f"transformer.h.{i}."
        y = rms_norm(x, state[at + "norm_1.weight"], EPS)
        q, k, v = _litgpt_qkv(state, at, y, n_heads, n_kv_heads, grouped)
        q, k = _head_norm(state, at + "attn.norm_q", q), _head_norm(state, at + "attn.norm_k", k)
        x = x + linear(state, at + "attn.proj", attention(turn_halves(q), turn_halves(k), v))
        y = rms_norm(x, state[at + "norm_2.weight"], EPS)
        gate, up = linear(state, at + "mlp.fc_1", y), linear(state, at + "mlp.fc_2", y)
        x = x + linear(state, at + "mlp.proj", silu(gate) * up)
    return linear(state, "lm_head", rms_norm(x, state["transformer.ln_f.weight"], EPS))


def _head_norm(state, name, x):
    weight = state.optional(name + ".weight")
    return x if weight is None else rms_norm(x, weight, EPS)


def _litgpt_qkv(state, at, y, n_heads, n_kv_heads, grouped):
    if not grouped:
        size = state[at + "attn.proj.weight"].shape[1] // n_heads
        rows = [n_heads * size, n_kv_heads * size, n_kv_heads * size]
        parts = linear(state, at + "attn.qkv", y).split(rows, -1)
        return [heads(p, n) for p, n in zip(parts, (n_heads, n_kv_heads, n_kv_heads), strict=True)]
    per_group = n_heads // n_kv_heads
    fused = linear(state, at + "attn.attn", y)
    fused = fused.view(*y.shape[:-1], n_kv_heads, per_group + 2, -1)
    q, k, v = fused.split((per_group, 1, 1), -2)
    return [torch.flatten(p, 2, 3) for p in (q, k, v)]
