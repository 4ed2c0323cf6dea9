"""Each recipe carries the function of a network from one library to the other, and renames alone do not."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.recipes.applier import NAMES
from tests.recipes.cases import CASES
from tests.recipes.models import mtcnn
from tests.recipes.models.parts import Used

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


class Double(TorchFunctionMode):
    """Libraries that compute norms, angles and softmax in float32 compute them in float64 here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with Double(), torch.no_grad():
        yield
    torch.set_default_dtype(before)


def random_like(state):
    """Values near a usual initialisation, so that no signal dies or explodes; norms near 1."""
    return {k: torch.randn_like(v) * (0.3 if v.ndim > 1 else 0.2) + (v.ndim == 1) for k, v in state.items()}


def run(forward, state):
    """The output of a forward pass, which must read every tensor of the state dict."""
    seen = Used(state)
    out = forward(seen)
    assert seen.read == set(state), f"not read: {sorted(set(state) - seen.read)}"
    return out


def test_every_recipe_is_proved():
    elsewhere = {"repvgg-deploy"}  # forward only: tests/repairs/test_repvgg.py
    assert {case.recipe for case in CASES} | set(mtcnn.RECIPES) | elsewhere == set(NAMES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_agree_in_both_directions_and_differ_without_the_ops(case):
    b = random_like(case.state())
    a = case.convert("b", b)
    due = run(case.b, b)
    assert due.dtype == torch.float64
    torch.testing.assert_close(run(case.a, a), due, **TOLERANCE)
    differs(case, case.a, "b", b, due)

    a = random_like(a)
    due = run(case.a, a)
    b = case.convert("a", a)
    torch.testing.assert_close(run(case.b, b), due, **TOLERANCE)
    differs(case, case.b, "a", a, due)


def differs(case, forward, side, state, due):
    """Renames, joins and parts alone cannot be loaded, or give other outputs: by a hundredth at least."""
    if case.plain:
        return
    bare, whole = case.convert(side, state, ops=False), case.convert(side, state)
    if any(bare[k].shape != whole[k].shape for k in whole):
        return
    assert (run(forward, bare) - due).abs().max() > 1e-2 * due.abs().max()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_way_there_and_back_changes_nothing(case):
    b = random_like(case.state())
    again = case.convert("a", case.convert("b", b))
    assert set(again) == set(b)
    assert all(torch.equal(again[k], b[k]) for k in b)
