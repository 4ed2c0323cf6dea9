"""MTCNN's R-Net and O-Net on the state dicts of facenet-pytorch and of fdet.

Source: facenet-pytorch 2.6.0 `models/mtcnn.py`; fdet names the layers otherwise and flattens (C, W, H).
"""

import torch
from torch.nn.functional import conv2d, max_pool2d, prelu

from tests.recipes.models.parts import Used, linear

# Proved on the published files, in tests/real/test_mtcnn.py: the network and the size of its images.
RECIPES = {"mtcnn-rnet": ("rnet", 24), "mtcnn-onet": ("onet", 48)}
# Pooling after each convolution; 0 for none.
POOLS = {"rnet": (3, 3, 0), "onet": (3, 3, 2, 0)}


def forward(state, image, net, fdet=False):
    state = Used(state)
    root, dense = ("features.", "features.conv{}") if fdet else ("", "dense{}")
    x = image
    for i, pool in enumerate(POOLS[net], 1):
        x = conv2d(x, state[f"{root}conv{i}.weight"], state[f"{root}conv{i}.bias"])
        x = prelu(x, state[f"{root}prelu{i}.weight"])
        if pool:
            x = max_pool2d(x, pool, 2, ceil_mode=True)
    last = len(POOLS[net]) + 1
    x = (x.permute(0, 1, 3, 2) if fdet else x.permute(0, 3, 2, 1)).flatten(1)
    x = prelu(linear(state, dense.format(last), x), state[f"{root}prelu{last}.weight"])
    head = "conv{}_{}" if fdet else "dense{}_{}"
    count = 2 if net == "rnet" else 3
    return torch.cat([linear(state, head.format(last + 1, n), x) for n in range(1, count + 1)], 1)
