"""DINOv2 with SwiGLU on its own state dict.

Source: facebookresearch/dinov2 `models/vision_transformer.py`, `layers/{attention,block,layer_scale,swiglu_ffn}.py`;
timm 1.0.31 `models/vision_transformer.py`, `layers/mlp.py` for the same under its names.
"""

import torch
from torch.nn.functional import conv2d, silu

from tests.recipes.models.parts import attention, depth, layer_norm, linear

EPS = 1e-6


def forward(state, image, n_heads, mlp=("w12", "w3")):
    x = conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = x.flatten(2).transpose(1, 2)
    state.optional("mask_token")  # only masked patches use it, in training
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for i in range(depth(state, "blocks.{}.norm1.weight")):
        at = f"blocks.{i}."
        qkv = linear(state, at + "attn.qkv", layer_norm(state, at + "norm1", x, EPS))
        q, k, v = qkv.unflatten(-1, (3, n_heads, -1)).unbind(2)
        y = linear(state, at + "attn.proj", attention(q, k, v, causal=False))
        x = x + y * state[at + "ls1.gamma"]
        y = linear(state, f"{at}mlp.{mlp[0]}", layer_norm(state, at + "norm2", x, EPS))
        first, second = y.chunk(2, -1)
        x = x + linear(state, f"{at}mlp.{mlp[1]}", silu(first) * second) * state[at + "ls2.gamma"]
    return layer_norm(state, "norm", x, EPS)
