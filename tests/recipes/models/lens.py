"""TransformerLens' HookedTransformer on its own state dict.

Source: transformer-lens 2.16 `components/` (abstract_attention, grouped_query_attention, mlp, gated_mlp,
transformer_block, rms_norm, layer_norm); the activations and rotary sizes in `loading_from_pretrained.py`.
"""

import torch
from torch.nn.functional import gelu, silu

from tests.recipes.models.parts import attention, depth, layer_norm, rms_norm, turn_halves

EPS = 1e-5


def gelu_new(x):
    return gelu(x, approximate="tanh")


def bloom_gelu(x):
    return x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def alibi(n_heads, time):
    """For a power of two of heads; relative to the key's position, which softmax does not see."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1, dtype=torch.float64) / n_heads)
    return slopes[:, None, None] * torch.arange(time, dtype=torch.float64)


def norm(state, name, x):
    if name + ".b" in state:
        return layer_norm(state, name, x, EPS, ".w", ".b")
    return rms_norm(x, state[name + ".w"], EPS)


def plus(state, name, x):
    bias = state.optional(name)
    return x if bias is None else x + bias


def attend(state, at, x, rotary, bias):
    def project(part):
        # With grouped queries k and v are `_W_K`, `_W_V`.
        under = "_" if f"{at}_W_{part}" in state else ""
        y = torch.einsum("btm,hmd->bthd", x, state[f"{at}{under}W_{part}"])
        return plus(state, f"{at}{under}b_{part}", y)

    q, k, v = map(project, "QKV")
    if rotary:
        q, k = turn_halves(q, size=rotary), turn_halves(k, size=rotary)
    z = attention(q, k, v, bias).unflatten(-1, (q.shape[2], -1))
    return plus(state, at + "b_O", torch.einsum("bthd,hdm->btm", z, state[at + "W_O"]))


def mlp(state, at, x, act):
    hidden = x @ state[at + "W_in"]
    if at + "W_gate" in state:
        hidden = plus(state, at + "b_in", act(x @ state[at + "W_gate"]) * hidden)
    else:
        hidden = act(plus(state, at + "b_in", hidden))
    return plus(state, at + "b_out", hidden @ state[at + "W_out"])


def forward(state, ids, act=silu, rotary=0, parallel=False, with_alibi=False):
    x = state["embed.W_E"][ids]
    if "pos_embed.W_pos" in state and not with_alibi:  # there and not used
        x = x + state["pos_embed.W_pos"][: ids.shape[1]]
    if "embed.ln.w" in state:
        x = norm(state, "embed.ln", x)
    bias = alibi(state["blocks.0.attn.W_Q"].shape[0], ids.shape[1]) if with_alibi else 0.0
    for i in range(depth(state, "blocks.{}.ln1.w")):
        at = f"blocks.{i}."
        attended = attend(state, at + "attn.", norm(state, at + "ln1", x), rotary, bias)
        middle = x if parallel else x + attended
        fed = mlp(state, at + "mlp.", norm(state, at + "ln2", middle), act)
        x = x + attended + fed
    return plus(state, "unembed.b_U", norm(state, "ln_final", x) @ state["unembed.W_U"])
