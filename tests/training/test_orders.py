"""State without names: two orders have to agree among equal shapes, else a person is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn, optim

from ckptdoctor.errors import UndecidedError
from ckptdoctor.training.resume import auto_resume
from tests.training.zoo import RENAMES, New, Old, batches, seeded, train


class Two(nn.Module):
    """Two layers of one shape, and a head of another, in a given order of registration."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(5, 3) if name == "head" else nn.Linear(5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x).relu()).relu()).mean(1)


def saved(path: Path, model: nn.Module, make: Callable[[nn.Module], optim.Optimizer]) -> list[float]:
    optimizer = make(model)
    data = batches(8)
    train(model, optimizer, data[:4])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return train(model, optimizer, data[4:])


def adam(model: nn.Module) -> optim.Optimizer:
    return optim.Adam(model.parameters(), lr=0.01)


def head_first(model: nn.Module) -> optim.Optimizer:
    return optim.Adam([*model.head.parameters(), *model.a.parameters(), *model.b.parameters()], lr=0.01)


def decayed(model: nn.Module) -> optim.Optimizer:
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    return optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}], lr=0.01
    )


def go_on(path: Path, model: nn.Module, optimizer: optim.Optimizer, decisions: list[str]) -> list[float]:
    auto_resume(path, model, optimizer, decisions=decisions)
    return train(model, optimizer, batches(8)[4:])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.pth"


@pytest.mark.parametrize("make", [adam, head_first, decayed])
def test_an_unchanged_program_goes_on_without_a_question(
    path: Path, make: Callable[[nn.Module], optim.Optimizer]
) -> None:
    expected = saved(path, seeded(lambda: Two("a", "b", "head")), make)
    model = seeded(lambda: Two("a", "b", "head"), 7)
    assert go_on(path, model, make(model), []) == expected


def test_modules_of_other_shapes_that_change_places_are_no_question(path: Path) -> None:
    expected = saved(path, seeded(lambda: Two("a", "b", "head")), adam)
    model = seeded(lambda: Two("head", "a", "b"), 7)
    assert go_on(path, model, adam(model), []) == expected


def test_equal_shapes_that_change_places_are_a_question_with_its_answers(path: Path) -> None:
    expected = saved(path, seeded(lambda: Two("a", "b", "head")), adam)
    model = seeded(lambda: Two("b", "a", "head"), 7)
    with pytest.raises(UndecidedError, match="param-order=checkpoint") as error:
        go_on(path, model, adam(model), [])
    assert [d.code for d in error.value.diagnostics] == ["CKD607"]
    assert "a.weight in the file's order, b.weight in the optimizer's" in str(error.value)
    by_file = seeded(lambda: Two("b", "a", "head"), 7)
    assert go_on(path, by_file, adam(by_file), ["param-order=checkpoint"]) == expected
    by_model = seeded(lambda: Two("b", "a", "head"), 7)
    assert go_on(path, by_model, adam(by_model), ["param-order=model"]) != expected


def test_an_optimizer_made_in_another_order_is_a_question(path: Path) -> None:
    saved(path, seeded(lambda: Two("a", "b", "head")), adam)
    model = seeded(lambda: Two("a", "b", "head"), 7)
    other = optim.Adam([*model.b.parameters(), *model.a.parameters(), *model.head.parameters()])
    with pytest.raises(UndecidedError, match="param-order=model"):
        go_on(path, model, other, [])


def test_groups_that_cannot_be_followed_are_a_question(path: Path) -> None:
    # Saved head first in groups of two learning rates; today everything is in one group.
    def two_rates(model: nn.Module) -> optim.Optimizer:
        groups = [{"params": list(model.b.parameters()), "lr": 0.1}, {"params": list(model.a.parameters())}]
        return optim.Adam(groups, lr=0.01)

    saved(path, seeded(lambda: Two("a", "b", "head")), two_rates)
    model = seeded(lambda: Two("a", "b", "head"), 7)
    one = optim.Adam([*model.a.parameters(), *model.b.parameters()])
    with pytest.raises(UndecidedError, match="CKD607"):
        go_on(path, model, one, [])


def test_a_sorted_file_proves_no_order(path: Path) -> None:
    from safetensors.torch import save_file

    folder = path.with_name("trainer")
    folder.mkdir()
    model = seeded(lambda: Two("a", "b", "head"))
    optimizer = adam(model)
    train(model, optimizer, batches(4))
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text('{"epoch": 1.5, "global_step": 4}')
    expected = train(model, optimizer, batches(8)[4:])
    again = seeded(lambda: Two("a", "b", "head"), 7)
    with pytest.raises(UndecidedError, match="param-order=model") as error:
        go_on(folder, again, adam(again), [])
    assert "param-order=checkpoint" not in str(error.value)
    assert go_on(folder, again, adam(again), ["param-order=model"]) == expected


def test_frozen_parameters_that_the_optimizer_leaves_out(path: Path) -> None:
    def trained(model: nn.Module) -> optim.Optimizer:
        model.a.requires_grad_(False)
        return optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)

    expected = saved(path, seeded(lambda: Two("a", "b", "head")), trained)
    model = seeded(lambda: Two("head", "a", "b"), 7)
    assert go_on(path, model, trained(model), []) == expected


def test_unfrozen_parameters_are_asked_and_begin_without_state(path: Path) -> None:
    def head_only(model: nn.Module) -> optim.Optimizer:
        return optim.Adam(model.head.named_parameters(prefix="head"), lr=0.01)

    saved(path, seeded(lambda: Two("a", "b", "head")), head_only)
    model = seeded(lambda: Two("a", "b", "head"), 7)
    optimizer = optim.Adam(model.named_parameters(), lr=0.01)
    with pytest.raises(UndecidedError, match=r"CKD603 4 parameters of the optimizer have no entry"):
        auto_resume(path, model, optimizer)
    decisions = ["drop-state=a.**", "drop-state=b.**"]
    receipt = auto_resume(path, model, optimizer, decisions=decisions)
    assert set(receipt.optimizers[0].fresh) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert receipt.optimizers[0].carried == 2
    assert not optimizer.state[model.a.weight]


def test_a_new_head_begins_without_state_by_the_decision_for_its_weights(path: Path) -> None:
    saved(path, seeded(lambda: Two("a", "b", "head")), lambda m: optim.Adam(m.named_parameters()))
    model = seeded(lambda: Two("a", "b", "head"), 7)
    model.head = nn.Linear(5, 9)
    optimizer = optim.Adam(model.named_parameters())
    with pytest.raises(UndecidedError, match="CKD603"):
        auto_resume(path, model, optimizer, decisions=["reinit=head.**"])
    decisions = ["reinit=head.**", "drop-state=head.**"]
    receipt = auto_resume(path, model, optimizer, decisions=decisions)
    assert set(receipt.optimizers[0].fresh) == {"head.weight", "head.bias"}


def test_tied_weights_have_one_state(path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(5, 5))
            self.b.weight = self.a.weight
            self.out = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.b(self.a(x).relu())).mean(1)

    expected = saved(path, seeded(lambda: Tied("a", "b")), adam)
    model = seeded(lambda: Tied("a", "b"), 7)
    assert go_on(path, model, adam(model), []) == expected
    turned = seeded(lambda: Tied("b", "a"), 7)
    assert go_on(path, turned, adam(turned), ["param-order=checkpoint"]) == expected


def test_renamed_equal_norms_without_names_are_a_question(path: Path) -> None:
    expected = saved(path, seeded(Old), adam)
    model = seeded(New, 7)
    with pytest.raises(UndecidedError, match=r"norm1\.weight in the file's order"):
        go_on(path, model, adam(model), RENAMES)
    assert go_on(path, model, adam(model), [*RENAMES, "param-order=checkpoint"]) == expected


def test_no_state_yet_is_no_question(path: Path) -> None:
    def sgd(model: nn.Module) -> optim.Optimizer:
        return optim.SGD(model.parameters(), lr=0.25)

    expected = saved(path, seeded(lambda: Two("a", "b", "head")), sgd)
    model = seeded(lambda: Two("b", "a", "head"), 7)
    optimizer = optim.SGD(model.parameters(), lr=99.0)
    assert go_on(path, model, optimizer, []) == expected
    assert optimizer.param_groups[0]["lr"] == 0.25
