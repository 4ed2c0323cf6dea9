"""Source files for tests of targets."""

from collections.abc import Callable

import pytest

from ckptdoctor.errors import TargetError
from ckptdoctor.targets import Target, load_target

HEAD = "import torch\nfrom torch import nn\n"
NET = """
class Net(nn.Module):
    def __init__(self, num_classes=10, *, wide: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8 if wide else 4, 3)
        self.fc = nn.Linear(4, num_classes)
"""

Write = Callable[..., str]


def error(model: str, **options: object) -> str:
    with pytest.raises(TargetError) as caught:
        load_target(model, **options)
    return str(caught.value)


def shapes(target: Target) -> dict[str, tuple[int, ...]]:
    return {k: s.shape for k, s in target.tree.specs.items()}


NET_SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (10, 4), "fc.bias": (10,)}
