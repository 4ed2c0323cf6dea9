"""Save -> any wrapper, rename, reorder -> resume: the moments follow their weights, or a person is asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from ckptdoctor.errors import IncompatibleError, UndecidedError
from ckptdoctor.training.resume import auto_resume
from ckptdoctor.training.save import save_checkpoint


class Compiled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner


WRAPS = [lambda m: m, nn.DataParallel, Compiled, lambda m: nn.DataParallel(Compiled(m))]
LAYERS = [
    lambda: nn.Linear(3, 3), lambda: nn.Linear(3, 2), lambda: nn.LayerNorm(3), lambda: nn.Linear(2, 3, bias=False),
    lambda: nn.BatchNorm1d(3), lambda: nn.Embedding(3, 3),
]  # fmt: skip
NAMES = ["stem", "body", "neck", "head", "norm", "gate", "down", "query", "value", "final", "extra"]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    kinds = draw(st.lists(st.integers(0, len(LAYERS) - 1), min_size=2, max_size=5))
    count = len(kinds)
    old = draw(st.permutations(NAMES))[:count]
    recipe = draw(st.one_of(st.none(), st.permutations(range(count))))  # how the program lists layers
    # A program that lists layers in an order of its own and swaps their names as well leaves no trace of
    # either in the file: see "Two orders that agree can both be wrong" in docs/training.md.
    others = NAMES if recipe is None else [name for name in NAMES if name not in old]
    new = draw(st.one_of(st.just(old), st.permutations(others).map(lambda names: names[:count])))
    return {
        "kinds": kinds,
        "old": old,
        "new": new,
        "reorder": draw(st.one_of(st.just(list(range(count))), st.permutations(range(count)))),
        "wraps": (draw(st.sampled_from(WRAPS)), draw(st.sampled_from(WRAPS))),
        "by_name": draw(st.booleans()),  # save_checkpoint, or plain torch without names
        "recipe": recipe,
        "groups": draw(st.booleans()),
    }


def build(
    kinds: list[int], names: list[str], order: list[int], seed: float
) -> tuple[nn.Module, list[nn.Module]]:
    layers = [LAYERS[k]() for k in kinds]
    model = nn.Module()
    for i in order:
        model.add_module(names[i], layers[i])
    for n, tensor in enumerate(model.state_dict().values()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape) + seed + n)
    return model, layers


def make(model: nn.Module, layers: list[nn.Module], case: dict[str, Any]) -> optim.Optimizer:
    """The optimizer, as one and the same program makes it before and after."""
    recipe = case["recipe"]
    params = (
        list(model.parameters()) if recipe is None else [p for i in recipe for p in layers[i].parameters()]
    )
    if not case["groups"]:
        return optim.Adam(params, lr=0.1)
    wide, thin = [p for p in params if p.dim() > 1], [p for p in params if p.dim() < 2]
    return optim.Adam([{"params": g} for g in (wide, thin) if g], lr=0.1)


def mark(weight: Tensor) -> dict[str, Tensor]:
    """Moments that tell whose they are."""
    return {"step": torch.tensor(3.0), "exp_avg": weight.detach() * 2, "exp_avg_sq": weight.detach() * 3}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_moments_follow_their_weights_or_it_is_a_question(case: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, layers = build(case["kinds"], case["old"], list(range(len(case["kinds"]))), 10)
    optimizer = make(model, layers, case)
    for p in model.parameters():
        optimizer.state[p] = mark(p)
    other, others = build(case["kinds"], case["new"], case["reorder"], 500)
    fresh = make(other, others, case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pth"
        if case["by_name"]:
            save_checkpoint(path, case["wraps"][0](model), optimizer)
        else:
            state = case["wraps"][0](model).state_dict()
            torch.save({"model": state, "optimizer": optimizer.state_dict()}, path)
        before = {k: v.clone() for k, v in other.state_dict().items()}
        try:
            receipt = auto_resume(path, case["wraps"][1](other), fresh)
        except (UndecidedError, IncompatibleError):
            assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
            assert not fresh.state
            return
    assert receipt.optimizers[0].carried == len(list(other.parameters()))
    for p in other.parameters():
        assert torch.equal(fresh.state[p]["exp_avg"], p.detach() * 2)
        assert torch.equal(fresh.state[p]["exp_avg_sq"], p.detach() * 3)
    if case["old"] == case["new"]:
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_what_is_saved_by_name_is_never_asked_for_its_moments() -> None:
    model, layers = build([0, 0, 2], ["a", "b", "c"], [0, 1, 2], 10)
    optimizer = make(model, layers, {"recipe": None, "groups": False})
    for p in model.parameters():
        optimizer.state[p] = mark(p)
    other, others = build([0, 0, 2], ["a", "b", "c"], [1, 2, 0], 500)
    fresh = make(other, others, {"recipe": None, "groups": True})
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "a.pth", model, optimizer)
        auto_resume(Path(folder) / "a.pth", other, fresh)
    assert all(torch.equal(fresh.state[p]["exp_avg"], p.detach() * 2) for p in other.parameters())
