"""A small network in three spellings, every optimizer of torch.optim that has state, and a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = False  # it knows no 4-bit floats, and is for debugging


class Attention(nn.Module):
    """One head over 4 tokens; q, k and v in one tensor or in three."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:  # row by row as the three would do, so that both give the same bits
            parts = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
            q, k, v = (F.linear(x, w, b) for w, b in parts)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        return self.proj((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v)


class Old(nn.Module):
    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.attn = Attention(8, fused)
        self.norm1 = nn.LayerNorm(8)
        self.norm2 = nn.LayerNorm(8)
        self.bn = nn.BatchNorm1d(4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.embed(x))
        x = self.norm2(self.bn(x + self.attn(x)))
        return self.head(x.mean(1))


class New(nn.Module):
    """The same function: other names, another order of registration, equal shapes change places."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 3)
        self.batch_norm = nn.BatchNorm1d(4)
        self.post_norm = nn.LayerNorm(8)
        self.stem = nn.Linear(5, 8)
        self.pre_norm = nn.LayerNorm(8)
        self.attention = Attention(8, fused)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_norm(self.stem(x))
        x = self.post_norm(self.batch_norm(x + self.attention(x)))
        return self.classifier(x.mean(1))


# What no shape can show: which of two equal norms is which.
RENAMES = [
    "rename=embed.**=stem.**", "rename=attn.**=attention.**", "rename=norm1.**=pre_norm.**",
    "rename=norm2.**=post_norm.**", "rename=bn.**=batch_norm.**", "rename=head.**=classifier.**",
]  # fmt: skip

SPLIT = [text for text in RENAMES if not text.startswith("rename=attn")]  # the rest is found


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, 4, 5, generator=generator).to(dtype), torch.randint(0, 3, (6,), generator=generator))
        for _ in range(count)
    ]


def seeded(make: Callable[[], nn.Module], seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def train(
    model: nn.Module, optimizer: Any, data: Iterable[tuple[Tensor, Tensor]], scheduler: Any = None
) -> list[float]:
    """The loss before each step."""
    losses = []
    for x, y in data:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        if scheduler is not None:
            scheduler.step()
    return losses


@dataclass(frozen=True)
class Kind:
    name: str
    make: Callable[[Iterable[Any]], torch.optim.Optimizer]
    elementwise: bool = True  # a part of the state is the state of the part


KINDS = [
    Kind("SGD-momentum", lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True)),
    Kind("Adam", lambda p: optim.Adam(p, lr=0.01)),
    Kind("Adam-amsgrad", lambda p: optim.Adam(p, lr=0.01, amsgrad=True)),
    Kind("Adam-foreach", lambda p: optim.Adam(p, lr=0.01, foreach=True)),
    Kind("Adam-fused", lambda p: optim.Adam(p, lr=0.01, fused=True)),
    Kind("AdamW", lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1)),
    Kind("Adamax", lambda p: optim.Adamax(p, lr=0.01)),
    Kind("NAdam", lambda p: optim.NAdam(p, lr=0.01)),
    Kind("RAdam", lambda p: optim.RAdam(p, lr=0.01)),
    Kind("ASGD", lambda p: optim.ASGD(p, lr=0.05)),
    Kind("Adagrad", lambda p: optim.Adagrad(p, lr=0.05)),
    Kind("Adadelta", lambda p: optim.Adadelta(p, lr=1.0)),
    Kind("RMSprop-centered", lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True)),
    Kind("Rprop", lambda p: optim.Rprop(p, lr=0.01)),
    Kind("Adafactor", lambda p: optim.Adafactor(p, lr=0.05), elementwise=False),
    Kind("LBFGS", lambda p: optim.LBFGS(p, lr=0.1, max_iter=4, history_size=5), elementwise=False),
]  # fmt: skip
