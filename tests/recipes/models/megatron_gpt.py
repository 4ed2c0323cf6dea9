"""Megatron-LM's GPT on its own state dict, as each checkpoint_version packs q, k and v.

Source: Megatron-LM 2.4 `megatron/model/transformer.py` and `megatron/checkpointing.py`.
"""

from tests.recipes.models.lens import gelu_new
from tests.recipes.models.parts import attention, depth, layer_norm, linear

EPS = 1e-5


def split(fused, n_heads, version):
    """Version 0 is [q, k, v] of heads, version 1 [head, row, q k v], later ones [head, q k v, row]."""
    if version == 0:
        return fused.unflatten(-1, (3, n_heads, -1)).unbind(-3)
    if version == 1:
        return fused.unflatten(-1, (n_heads, -1, 3)).unbind(-1)
    return fused.unflatten(-1, (n_heads, 3, -1)).unbind(-2)


def forward(state, ids, n_heads, version, trunk="encoder", attn="self_attention"):
    """The normalised last states."""
    root = "language_model."
    x = state[root + "embedding.word_embeddings.weight"][ids]
    x = x + state[root + "embedding.position_embeddings.weight"][: ids.shape[1]]
    for i in range(depth(state, f"{root}{trunk}.layers.{{}}.input_layernorm.weight")):
        at = f"{root}{trunk}.layers.{i}."
        fused = linear(
            state, f"{at}{attn}.query_key_value", layer_norm(state, at + "input_layernorm", x, EPS)
        )
        x = x + linear(state, f"{at}{attn}.dense", attention(*split(fused, n_heads, version)))
        y = layer_norm(state, at + "post_attention_layernorm", x, EPS)
        y = gelu_new(linear(state, at + "mlp.dense_h_to_4h", y))
        x = x + linear(state, at + "mlp.dense_4h_to_h", y)
    return layer_norm(state, f"{root}{trunk}.final_layernorm", x, EPS)
