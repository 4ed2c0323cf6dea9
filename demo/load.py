"""`python demo/load.py PUBLISHED CHECKPOINT`: load strictly with torch alone, compare with the original."""

import sys
from pathlib import Path

import torch
from model import ONet
from original import ONet as Original

published, checkpoint = sys.argv[1:]
network = ONet().eval()
network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True), strict=True)

original = Original().eval()
original.load_state_dict(torch.load(published, map_location="cpu", weights_only=True), strict=True)
images = torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    difference = max(
        (a - b).abs().max().item() for a, b in zip(network(images), original(images), strict=True)
    )
print(
    f"{Path(checkpoint).name} loaded strictly; largest difference of any output over 8 images: {difference:g}"
)
sys.exit(difference > 1e-6)
