"""FLUX.1 on the state dicts of Black Forest Labs and of diffusers.

Sources: black-forest-labs/flux `src/flux/model.py`, `modules/layers.py`; diffusers 0.42
`models/transformers/transformer_flux.py`, `models/normalization.py`, `models/embeddings.py`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from tests.recipes.models.parts import attention, depth, heads, linear, rms_norm

WIDTH, HEADS, AXES, HIDDEN = 24, 3, (2, 2, 4), 20
CHANNELS, TEXT, POOLED = 4, 6, 5


@dataclass(frozen=True)
class Inputs:
    image: Tensor
    text: Tensor
    pooled: Tensor
    time: Tensor
    guidance: Tensor
    places: Tensor  # [tokens, 3], text before image


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    grid = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    image_places = torch.cat([torch.zeros(4, 1), grid], 1)
    places = torch.cat([torch.zeros(3, 3), image_places])
    return Inputs(
        draw(2, 4, CHANNELS), draw(2, 3, TEXT), draw(2, POOLED), draw(2).abs(), draw(2).abs(), places
    )


def shapes() -> dict[str, tuple[int, ...]]:
    """diffusers' tree, with two double and two single blocks."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(name, out, into):
        found[name + ".weight"], found[name + ".bias"] = (out, into), (out,)

    for part, size in (("timestep", 256), ("guidance", 256), ("text", POOLED)):
        layer(f"time_text_embed.{part}_embedder.linear_1", WIDTH, size)
        layer(f"time_text_embed.{part}_embedder.linear_2", WIDTH, WIDTH)
    layer("context_embedder", WIDTH, TEXT)
    layer("x_embedder", WIDTH, CHANNELS)
    for i in range(2):
        at = f"transformer_blocks.{i}."
        for stream, ff in (("norm1", "ff"), ("norm1_context", "ff_context")):
            layer(f"{at}{stream}.linear", 6 * WIDTH, WIDTH)
            layer(f"{at}{ff}.net.0.proj", HIDDEN, WIDTH)
            layer(f"{at}{ff}.net.2", WIDTH, HIDDEN)
        for name in (
            "to_q",
            "to_k",
            "to_v",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_out.0",
            "to_add_out",
        ):
            layer(f"{at}attn.{name}", WIDTH, WIDTH)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            found[f"{at}attn.{name}.weight"] = (WIDTH // HEADS,)
        at = f"single_transformer_blocks.{i}."
        layer(at + "norm.linear", 3 * WIDTH, WIDTH)
        layer(at + "proj_mlp", HIDDEN, WIDTH)
        layer(at + "proj_out", WIDTH, WIDTH + HIDDEN)
        for name in ("q", "k", "v"):
            layer(f"{at}attn.to_{name}", WIDTH, WIDTH)
        for name in ("norm_q", "norm_k"):
            found[f"{at}attn.{name}.weight"] = (WIDTH // HEADS,)
    layer("norm_out.linear", 2 * WIDTH, WIDTH)
    layer("proj_out", CHANNELS, WIDTH)
    return found


def waves(x: Tensor) -> Tensor:
    steps = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    angle = 1000 * x[:, None] * steps
    return torch.cat([angle.cos(), angle.sin()], -1)


def turn(x: Tensor, places: Tensor) -> Tensor:
    """Rotary pairs side by side, each axis on its own rows of a head. x: [batch, token, head, row]."""
    angle = torch.cat(
        [
            places[:, n : n + 1].double() * 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
            for n, size in enumerate(AXES)
        ],
        -1,
    )
    spun = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(spun * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)


def normal(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)


def shifted(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normal(x) * (1 + scale[:, None]) + shift[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
    return attention(turn(q, places), turn(k, places), v, causal=False)


def mlp(state, first, second, x):
    return linear(state, second, gelu(linear(state, first, x), approximate="tanh"))


def embedded(state, name, layers, x):
    return linear(state, f"{name}.{layers[1]}", silu(linear(state, f"{name}.{layers[0]}", x)))


def bfl(state, given: Inputs) -> Tensor:
    layers = ("in_layer", "out_layer")
    vec = embedded(state, "time_in", layers, waves(given.time))
    vec = vec + embedded(state, "guidance_in", layers, waves(given.guidance))
    vec = silu(vec + embedded(state, "vector_in", layers, given.pooled))
    streams = {"txt": linear(state, "txt_in", given.text), "img": linear(state, "img_in", given.image)}
    for i in range(depth(state, "double_blocks.{}.img_mod.lin.weight")):
        at = f"double_blocks.{i}."
        mods = {s: linear(state, f"{at}{s}_mod.lin", vec).chunk(6, -1) for s in streams}
        parts = []
        for s, x in streams.items():
            fused = linear(state, f"{at}{s}_attn.qkv", shifted(x, *mods[s][:2]))
            q, k, v = fused.unflatten(-1, (3, HEADS, -1)).unbind(2)
            q = rms_norm(q, state[f"{at}{s}_attn.norm.query_norm.scale"], 1e-6)
            parts.append((q, rms_norm(k, state[f"{at}{s}_attn.norm.key_norm.scale"], 1e-6), v))
        joint = attend(*(torch.cat(p, 1) for p in zip(*parts, strict=True)), given.places)
        for s, y in zip(streams, joint.split([x.shape[1] for x in streams.values()], 1), strict=True):
            x = streams[s] + mods[s][2][:, None] * linear(state, f"{at}{s}_attn.proj", y)
            y = mlp(state, f"{at}{s}_mlp.0", f"{at}{s}_mlp.2", shifted(x, *mods[s][3:5]))
            streams[s] = x + mods[s][5][:, None] * y
    x = torch.cat([streams["txt"], streams["img"]], 1)
    for i in range(depth(state, "single_blocks.{}.modulation.lin.weight")):
        at = f"single_blocks.{i}."
        shift, scale, gate = linear(state, at + "modulation.lin", vec).chunk(3, -1)
        fused, hidden = linear(state, at + "linear1", shifted(x, shift, scale)).split([3 * WIDTH, HIDDEN], -1)
        q, k, v = fused.unflatten(-1, (3, HEADS, -1)).unbind(2)
        q = rms_norm(q, state[at + "norm.query_norm.scale"], 1e-6)
        k = rms_norm(k, state[at + "norm.key_norm.scale"], 1e-6)
        y = torch.cat([attend(q, k, v, given.places), gelu(hidden, approximate="tanh")], -1)
        x = x + gate[:, None] * linear(state, at + "linear2", y)
    shift, scale = linear(state, "final_layer.adaLN_modulation.1", vec).chunk(2, -1)
    return linear(state, "final_layer.linear", shifted(x[:, given.text.shape[1] :], shift, scale))


def diffusers(state, given: Inputs) -> Tensor:
    layers = ("linear_1", "linear_2")
    embedders = (("timestep", waves(given.time)), ("guidance", waves(given.guidance)), ("text", given.pooled))
    vec = silu(sum(embedded(state, f"time_text_embed.{n}_embedder", layers, x) for n, x in embedders))
    text, image = linear(state, "context_embedder", given.text), linear(state, "x_embedder", given.image)

    def project(at, names, norms, x):
        q, k, v = (heads(linear(state, at + n, x), HEADS) for n in names)
        return (
            rms_norm(q, state[f"{at}{norms[0]}.weight"], 1e-6),
            rms_norm(k, state[f"{at}{norms[1]}.weight"], 1e-6),
            v,
        )

    for i in range(depth(state, "transformer_blocks.{}.norm1.linear.weight")):
        at = f"transformer_blocks.{i}."
        mine = linear(state, at + "norm1.linear", vec).chunk(6, -1)
        context = linear(state, at + "norm1_context.linear", vec).chunk(6, -1)
        added = ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
        of_text = project(at + "attn.", *added, shifted(text, *context[:2]))
        of_image = project(
            at + "attn.", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), shifted(image, *mine[:2])
        )
        y = attend(*(torch.cat(p, 1) for p in zip(of_text, of_image, strict=True)), given.places)
        image = image + mine[2][:, None] * linear(state, at + "attn.to_out.0", y[:, text.shape[1] :])
        y = linear(state, at + "attn.to_add_out", y[:, : text.shape[1]])
        text = text + context[2][:, None] * y
        y = mlp(state, at + "ff.net.0.proj", at + "ff.net.2", shifted(image, *mine[3:5]))
        image = image + mine[5][:, None] * y
        y = mlp(state, at + "ff_context.net.0.proj", at + "ff_context.net.2", shifted(text, *context[3:5]))
        text = text + context[5][:, None] * y
    x = torch.cat([text, image], 1)
    for i in range(depth(state, "single_transformer_blocks.{}.norm.linear.weight")):
        at = f"single_transformer_blocks.{i}."
        shift, scale, gate = linear(state, at + "norm.linear", vec).chunk(3, -1)
        y = shifted(x, shift, scale)
        q, k, v = project(at + "attn.", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), y)
        hidden = gelu(linear(state, at + "proj_mlp", y), approximate="tanh")
        y = torch.cat([attend(q, k, v, given.places), hidden], -1)
        x = x + gate[:, None] * linear(state, at + "proj_out", y)
    scale, shift = linear(state, "norm_out.linear", vec).chunk(2, -1)
    return linear(state, "proj_out", shifted(x[:, text.shape[1] :], shift, scale))
