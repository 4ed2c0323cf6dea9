"""LitGPT's blocks with layer norms and a parallel residual (Pythia, Falcon).

Source: LitGPT 0.5.13 `model.py`, `Block.forward` and `GptNeoxMLP`; the configurations in `config.py`.
"""

from torch.nn.functional import gelu

from tests.recipes.models.llamas import grouped, joined
from tests.recipes.models.parts import attention, depth, layer_norm, linear, turn_halves

EPS = 1e-5


def litgpt(state, ids, n_heads, n_kv_heads, rotary, old=False):
    """``rotary``: rotary rows of a head; ``old``: the packing of `attn.attn`."""
    qkv = (grouped if old else joined)("attn.attn" if old else "attn.qkv", n_heads, n_kv_heads)
    x = state["transformer.wte.weight"][ids]
    for i in range(depth(state, "transformer.h.{}.norm_1.weight")):
        at = f"transformer.h.{i}."
        y = layer_norm(state, at + "norm_1", x, EPS)
        q, k, v = qkv(state, at, y)
        q, k = turn_halves(q, size=rotary), turn_halves(k, size=rotary)
        # Falcon 7B shares one norm between attention and MLP.
        z = layer_norm(state, at + "norm_2", x, EPS) if at + "norm_2.weight" in state else y
        x = x + linear(state, at + "attn.proj", attention(q, k, v))
        x = x + linear(state, at + "mlp.proj", gelu(linear(state, at + "mlp.fc", z)))
    return linear(state, "lm_head", layer_norm(state, "transformer.ln_f", x, EPS))
