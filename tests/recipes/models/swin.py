"""Swin Transformer on the state dicts of the official code, of timm and of OpenMMLab.

Sources: microsoft/Swin-Transformer `models/swin_transformer.py`, timm 1.0.31 `models/swin_transformer.py`, mmdet
3.3 `models/backbones/swin.py` and `models/layers/transformer/utils.py`. All end in the normalised last stage.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import conv2d, gelu, softmax, unfold

from tests.recipes.models.parts import depth, layer_norm, linear

WINDOW = 4
EPS = 1e-5


@dataclass(frozen=True)
class Names:
    stem: str
    block: str
    attn: str
    fc1: str
    fc2: str
    merge: str  # of stage i, or of the stage after it
    norm: str
    timm: bool = False
    unfolds: bool = False


OFFICIAL = Names(
    "patch_embed.proj", "layers.{}.blocks.{}.", "attn.", "mlp.fc1", "mlp.fc2", "layers.{}.downsample", "norm"
)
TIMM = Names(
    "patch_embed.proj",
    "layers.{}.blocks.{}.",
    "attn.",
    "mlp.fc1",
    "mlp.fc2",
    "layers.{}.downsample",
    "norm",
    timm=True,
)
OPENMMLAB = Names(
    "backbone.patch_embed.projection",
    "backbone.stages.{}.blocks.{}.",
    "attn.w_msa.",
    "ffn.layers.0.0",
    "ffn.layers.1",
    "backbone.stages.{}.downsample",
    "backbone.norm3",
    unfolds=True,
)


def official_index(size):
    """For each pair of pixels of a window, the row of the bias table."""
    coords = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
    relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + size - 1
    return relative[..., 0] * (2 * size - 1) + relative[..., 1]


def openmmlab_index(size):
    rows, columns = torch.arange(size) * (2 * size - 1), torch.arange(size)
    steps = (rows[:, None] + columns[None, :]).reshape(1, -1)
    return (steps + steps.T).flip(1)


def official_merge(x):
    """[batch, height, width, channels]."""
    return torch.cat([x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)


def timm_merge(x):
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


def openmmlab_merge(x):
    height, width = x.shape[1:3]
    columns = unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2)
    return columns.transpose(1, 2).unflatten(1, (height // 2, width // 2))


def windows(x):
    batch, height, width, channels = x.shape
    x = x.view(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(-1, WINDOW * WINDOW, channels)


def whole(x, height, width):
    x = x.view(-1, height // WINDOW, width // WINDOW, WINDOW, WINDOW, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def mask(height, width, shift):
    """Pixels of different regions do not see each other after the shift."""
    region = torch.zeros(1, height, width, 1)
    count = 0
    for rows in (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None)):
        for columns in (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None)):
            region[:, rows, columns] = count
            count += 1
    flat = windows(region).squeeze(-1)
    return torch.where(flat[:, None] == flat[:, :, None], 0.0, -100.0)


def attend(state, names, at, x, n_heads, shift):
    """x: [batch, height, width, channels]."""
    height, width, channels = x.shape[1:]
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    fused = linear(state, at + names.attn + "qkv", windows(x)).unflatten(-1, (3, n_heads, -1))
    q, k, v = fused.permute(2, 0, 3, 1, 4)
    index = (openmmlab_index if names.unfolds else official_index)(WINDOW)
    bias = state[at + names.attn + "relative_position_bias_table"][index].permute(2, 0, 1)
    scores = q @ k.transpose(-1, -2) / (channels // n_heads) ** 0.5 + bias
    if shift:
        hidden = mask(height, width, shift)
        scores = (scores.unflatten(0, (-1, len(hidden))) + hidden[:, None]).flatten(0, 1)
    y = (softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
    y = whole(linear(state, at + names.attn + "proj", y), height, width)
    return y.roll((shift, shift), (1, 2)) if shift else y


def forward(state, image, names, n_heads, classifier=""):
    x = conv2d(image, state[names.stem + ".weight"], state[names.stem + ".bias"], stride=4)
    x = layer_norm(state, names.stem.rpartition(".")[0] + ".norm", x.permute(0, 2, 3, 1), EPS)
    merge = openmmlab_merge if names.unfolds else timm_merge if names.timm else official_merge
    for stage, count in enumerate(n_heads):
        for i in range(depth(state, names.block.replace("{}", str(stage), 1) + "norm1.weight")):
            at = names.block.format(stage, i)
            shift = WINDOW // 2 if i % 2 and x.shape[1] > WINDOW else 0
            x = x + attend(state, names, at, layer_norm(state, at + "norm1", x, EPS), count, shift)
            y = gelu(linear(state, at + names.fc1, layer_norm(state, at + "norm2", x, EPS)))
            x = x + linear(state, at + names.fc2, y)
        after = names.merge.format(stage + names.timm)
        if after + ".norm.weight" in state:
            x = linear(state, after + ".reduction", layer_norm(state, after + ".norm", merge(x), EPS))
    x = layer_norm(state, names.norm, x, EPS).flatten(1, 2)
    return linear(state, classifier, x.mean(1)) if classifier else x
