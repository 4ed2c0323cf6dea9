"""Sparse tensors of a checkpoint fill dense ones of a model: written out, value by value."""

import pytest
import torch
from torch import nn

import ckptdoctor as ckd

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")

LAYOUTS = {
    "coo": lambda w: w.to_sparse(),
    "coo with a place twice": lambda w: torch.sparse_coo_tensor(
        [[0, 0, 1], [1, 1, 2]], [1.0, 2.0, 3.0], w.shape
    ),
    "csr": lambda w: w.to_sparse_csr(),
    "csc": lambda w: w.to_sparse_csc(),
    "bsr": lambda w: w.to_sparse_bsr((2, 2)),
    "bsc": lambda w: w.to_sparse_bsc((2, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_sparse_layout_is_loaded_into_a_dense_model_and_a_dense_file(layout, tmp_path):
    state = nn.Linear(4, 6).state_dict()
    sparse = LAYOUTS[layout](nn.functional.dropout(state["weight"]))
    torch.save({"module.weight": sparse, "module.bias": state["bias"]}, tmp_path / "sparse.pth")
    model = nn.Linear(4, 6)
    receipt = ckd.auto_load(model, tmp_path / "sparse.pth")
    assert receipt.loaded == 2 and receipt.casts == {}
    assert torch.equal(model.weight, sparse.to_dense()) and torch.equal(model.bias, state["bias"])
    plan = ckd.plan(model, tmp_path / "sparse.pth")
    ckd.apply(plan, tmp_path / "sparse.pth", model=model, out=tmp_path / "dense.safetensors")
    written = ckd.inspect(tmp_path / "dense.safetensors").state_dicts[0].tree["weight"]
    assert written.layout == "strided" and written.shape == (6, 4)


def test_a_sparse_buffer_of_the_model_is_not_overwritten_by_a_dense_one(tmp_path):
    class Graph(nn.Module):
        def __init__(self, adjacency):
            super().__init__()
            self.register_buffer("adjacency", adjacency)
            self.linear = nn.Linear(3, 3)

    torch.save(Graph(torch.ones(3, 3)).state_dict(), tmp_path / "dense.pth")
    model = Graph(torch.eye(3).to_sparse())
    before = model.linear.weight.clone()
    with pytest.raises(ckd.CkptDoctorError, match="adjacency"):
        ckd.auto_load(model, tmp_path / "dense.pth")
    assert torch.equal(model.linear.weight, before) and model.adjacency.is_sparse
