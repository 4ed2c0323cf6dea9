"""The same network after a clean-up, as it happens in every project: the layers sit in a Sequential now."""

import torch
from torch import Tensor, nn


def pool(size: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(size, 2, ceil_mode=True)


class ONet(nn.Module):
    """Face or not (`classes` kinds), the box, and five landmarks, from 48 x 48 pixels."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.PReLU(32), pool(3),
            nn.Conv2d(32, 64, 3), nn.PReLU(64), pool(3),
            nn.Conv2d(64, 64, 3), nn.PReLU(64), pool(2),
            nn.Conv2d(64, 128, 2), nn.PReLU(128),
        )  # fmt: skip
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = (
            nn.Linear(256, classes),
            nn.Linear(256, 4),
            nn.Linear(256, 10),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.features(x).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu5(self.dense5(x))
        return torch.softmax(self.dense6_1(x), 1), self.dense6_2(x), self.dense6_3(x)
