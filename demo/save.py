"""`python demo/save.py PUBLISHED OUT`: what a training script leaves behind.

The published weights (a real file, from the PyPI package facenet-pytorch) go into the original network,
and that is saved as people save: around it DataParallel, beside it the epoch and the optimizer.
"""

import sys

import torch
from original import ONet
from torch import nn

published, out = sys.argv[1:]
network = ONet()
network.load_state_dict(torch.load(published, map_location="cpu", weights_only=True), strict=True)
parallel = nn.DataParallel(network)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01, momentum=0.9)
torch.save({"epoch": 12, "state_dict": parallel.state_dict(), "optimizer": optimizer.state_dict()}, out)
