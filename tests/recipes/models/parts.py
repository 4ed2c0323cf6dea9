"""What the reference forward passes share. Everything in the dtype of its input."""

import torch
from torch import Tensor
from torch.nn.functional import softmax


class Used(dict):
    """A state dict that knows which of its tensors a forward pass has read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def optional(self, key):
        if key not in self:
            return None
        return self[key]


def depth(state, pattern: str) -> int:
    """How many blocks there are: ``layers.{}.norm.weight``."""
    return next(i for i in range(1000) if pattern.format(i) not in state)


def linear(state, name: str, x: Tensor) -> Tensor:
    y = x @ state[name + ".weight"].T
    bias = state.optional(name + ".bias")
    return y if bias is None else y + bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def layer_norm(state, name: str, x: Tensor, eps: float, w: str = ".weight", b: str = ".bias") -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return scaled * state[name + w] + state[name + b]


def angles(time: int, size: int, theta: float) -> Tensor:
    """[time, size / 2]."""
    steps = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.outer(torch.arange(time, dtype=torch.float64), steps)


def turn_pairs(x: Tensor, theta: float = 10000.0, size: int = 0) -> Tensor:
    """Rotary embedding of neighbours (2i, 2i+1), as complex numbers. x: [..., time, heads, head size]."""
    size = size or x.shape[-1]
    turned = torch.view_as_complex(x[..., :size].unflatten(-1, (-1, 2)).contiguous())
    angle = angles(x.shape[-3], size, theta)[:, None]
    turned = torch.view_as_real(turned * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    return torch.cat([turned, x[..., size:]], -1)


def turn_halves(x: Tensor, theta: float = 10000.0, size: int = 0) -> Tensor:
    """Rotary embedding of (i, i + size/2). x: [..., time, heads, head size]."""
    size = size or x.shape[-1]
    angle = angles(x.shape[-3], size, theta)[:, None]
    left, right = x[..., : size // 2], x[..., size // 2 : size]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([left * cos - right * sin, right * cos + left * sin, x[..., size:]], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0, causal: bool = True) -> Tensor:
    """q: [batch, time, heads, size]; k, v may have fewer heads. -> [batch, time, heads * size]."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5 + bias
    if causal:
        time = q.shape[1]
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), float("-inf"))
    return torch.einsum("bhts,bshd->bthd", softmax(scores, -1), v).flatten(2)


def heads(x: Tensor, n: int) -> Tensor:
    return x.unflatten(-1, (n, -1))
