"""Groups, dtypes, foreign and odd optimizers: carried exactly, or a question that names its answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

from ckptdoctor.errors import ApplyError, UndecidedError
from ckptdoctor.training.resume import auto_resume
from tests.training.zoo import Old, batches, seeded, train


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.pth"


def write(path: Path, model: nn.Module, optimizer: Any, **more: Any) -> None:
    state = [o.state_dict() for o in optimizer] if isinstance(optimizer, list) else optimizer.state_dict()
    torch.save({"model": model.state_dict(), "optimizer": state, **more}, path)


def started(make: Callable[[nn.Module], optim.Optimizer], path: Path, **more: Any) -> tuple[nn.Module, Any]:
    model = seeded(Old)
    optimizer = make(model)
    train(model, optimizer, batches(4))
    write(path, model, optimizer, **more)
    return model, optimizer


def go_on(model: nn.Module, optimizer: Any) -> list[float]:
    return train(model, optimizer, batches(8)[4:])


def one(model: nn.Module) -> optim.Optimizer:
    return optim.AdamW(model.named_parameters(), lr=0.01, weight_decay=0.1)


def split(model: nn.Module) -> optim.Optimizer:
    named = list(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if p.dim() > 1], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, lr=0.01)


def test_a_new_split_into_groups_is_that_of_the_optimizer_at_hand(path: Path) -> None:
    started(one, path)
    model = seeded(Old, 9)
    optimizer = split(model)
    receipt = auto_resume(path, model, optimizer)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]  # re-derived, not the file's
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.01]
    assert receipt.optimizers[0].carried == 14
    assert any("weight_decay" in note for note in receipt.optimizers[0].notes)
    reference, other = started(one, path)
    other.param_groups[0]["weight_decay"] = 0.0
    for name, p in model.named_parameters():
        mine, theirs = optimizer.state[p], other.state[dict(reference.named_parameters())[name]]
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])


def test_groups_that_became_one_keep_what_is_the_same(path: Path) -> None:
    started(split, path)
    model = seeded(Old, 9)
    optimizer = one(model)
    auto_resume(path, model, optimizer)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.01, 0.1)


def test_two_learning_rates_that_became_one_are_a_question(path: Path) -> None:
    def rates(model: nn.Module) -> optim.Optimizer:
        optimizer = split(model)
        optimizer.param_groups[1]["lr"] = 0.5
        return optimizer

    started(rates, path)
    model = seeded(Old, 9)
    optimizer = one(model)
    optimizer.param_groups[0]["lr"] = 0.25
    with pytest.raises(UndecidedError, match=r"CKD601(.*\n)*.*param-groups=optimizer"):
        auto_resume(path, model, optimizer)
    auto_resume(path, model, optimizer, decisions=["param-groups=optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.state[model.head.weight]["step"] == 4


def test_hyperparameters_come_from_the_file_machine_flags_do_not(path: Path) -> None:
    started(lambda m: optim.Adam(m.named_parameters(), lr=0.001, betas=(0.8, 0.9), foreach=True), path)
    model = seeded(Old, 9)
    optimizer = optim.Adam(model.named_parameters(), lr=5.0, fused=True)
    auto_resume(path, model, optimizer)
    group = optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"])) == (0.001, (0.8, 0.9))
    assert (group["foreach"], group["fused"]) == (None, True)


def test_initial_lr_is_kept_for_a_scheduler_made_before(path: Path) -> None:
    _, optimizer = started(one, path)
    expected_lr = optimizer.param_groups[0]["lr"]
    fresh = seeded(Old, 9)
    again = one(fresh)
    again.param_groups[0]["lr"] = 0.7
    schedule = optim.lr_scheduler.StepLR(again, 3)
    auto_resume(path, fresh, again)
    assert again.param_groups[0]["initial_lr"] == 0.7  # torch would have dropped it
    assert again.param_groups[0]["lr"] == expected_lr
    schedule.step()


@pytest.mark.parametrize(
    ("make", "other", "words"),
    [
        (one, lambda m: optim.SGD(m.named_parameters(), lr=0.1, momentum=0.9), "SGD"),
        (lambda m: optim.SGD(m.named_parameters(), lr=0.1, momentum=0.9), one, "AdamW"),
        (one, lambda m: optim.Adam(m.named_parameters()), "decoupled_weight_decay"),
    ],
)
def test_another_kind_of_optimizer_is_refused(path: Path, make: Any, other: Any, words: str) -> None:
    started(make, path)
    model = seeded(Old, 9)
    optimizer = other(model)
    with pytest.raises(UndecidedError, match=r"CKD608 the saved state is that of another kind") as error:
        auto_resume(path, model, optimizer)
    assert words in str(error.value)
    receipt = auto_resume(path, model, optimizer, decisions=["drop-state=**"])
    assert receipt.optimizers[0].carried == 0 and not optimizer.state
    go_on(model, optimizer)


def test_a_kind_with_the_same_settings_and_other_state_is_refused(path: Path) -> None:
    model, optimizer = started(one, path)
    state = optimizer.state_dict()
    for slots in state["state"].values():  # Lion has betas like Adam, and one moment
        del slots["exp_avg_sq"]
    torch.save({"model": model.state_dict(), "optimizer": state}, path)
    with pytest.raises(UndecidedError, match="differ in exp_avg_sq"):
        auto_resume(path, model, optimizer)


def test_fp32_moments_of_bf16_parameters_stay_fp32(path: Path) -> None:
    model = seeded(Old).bfloat16()
    optimizer = one(model)
    for p in model.parameters():
        optimizer.state[p] = {"step": torch.tensor(3.0), "exp_avg": torch.rand_like(p, dtype=torch.float32)}
        optimizer.state[p]["exp_avg_sq"] = torch.rand_like(p, dtype=torch.float32)
    write(path, model, optimizer)
    fresh = seeded(Old, 9).bfloat16()
    again = one(fresh)
    auto_resume(path, fresh, again)
    assert torch.equal(
        again.state[fresh.head.weight]["exp_avg"], optimizer.state[model.head.weight]["exp_avg"]
    )
    plain = one(fresh)
    plain.load_state_dict(torch.load(path, weights_only=False)["optimizer"])
    assert plain.state[fresh.head.weight]["exp_avg"].dtype == torch.bfloat16  # rounded without a word


def test_moments_are_rounded_only_when_asked(path: Path) -> None:
    started(one, path)
    model = seeded(Old, 9).bfloat16()
    optimizer = one(model)
    with pytest.raises(UndecidedError, match=r"CKD604(.*\n)*.*state-dtype=round"):
        auto_resume(path, model, optimizer)
    auto_resume(path, model, optimizer, decisions=["state-dtype=round"])
    assert optimizer.state[model.head.weight]["exp_avg"].dtype == torch.bfloat16


def test_8_bit_state_is_refused_with_a_reason(path: Path) -> None:
    model, optimizer = started(one, path)
    state = optimizer.state_dict()
    for slots in state["state"].values():
        slots["state1"] = slots.pop("exp_avg").to(torch.uint8)
        slots |= {"absmax1": torch.ones(1), "qmap1": torch.ones(256)}
    torch.save({"model": model.state_dict(), "optimizer": state}, path)
    fresh = seeded(Old, 9)
    again = one(fresh)
    with pytest.raises(UndecidedError, match="8-bit codes with block scales"):
        auto_resume(path, fresh, again)
    assert auto_resume(path, fresh, again, decisions=["drop-state=**"]).optimizers[0].carried == 0


def test_muon_is_carried_by_name(path: Path) -> None:
    class Matrices(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(5, 5, bias=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu()).mean(1)[:, :3]

    model = seeded(lambda: Matrices("a", "b"))
    optimizer = optim.Muon(model.named_parameters(), lr=0.01)
    train(model, optimizer, batches(4))
    write(path, model, optimizer)
    expected = go_on(model, optimizer)
    turned = seeded(lambda: Matrices("b", "a"), 9)
    again = optim.Muon(turned.named_parameters(), lr=0.01)
    auto_resume(path, turned, again)
    assert go_on(turned, again) == expected
    wrong = seeded(lambda: Matrices("b", "a"), 9)
    auto_resume(path, wrong)
    plain = optim.Muon(wrong.named_parameters(), lr=0.01)
    plain.load_state_dict(torch.load(path, weights_only=False)["optimizer"])
    assert go_on(wrong, plain) != expected


def test_sparse_adam_is_carried_by_name(path: Path) -> None:
    class Tables(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, nn.Embedding(10, 3, sparse=True))

    def steps(model: nn.Module, optimizer: optim.Optimizer, start: int) -> list[float]:
        losses = []
        for i in range(start, start + 4):
            rows = torch.tensor([i % 3, (i + 1) % 3])
            optimizer.zero_grad()
            loss = F.mse_loss(model.a(rows) * model.b(rows), torch.ones(2, 3))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model = seeded(lambda: Tables("a", "b"))
    optimizer = optim.SparseAdam(model.named_parameters(), lr=0.1)
    steps(model, optimizer, 0)
    write(path, model, optimizer)
    expected = steps(model, optimizer, 4)
    turned = seeded(lambda: Tables("b", "a"), 9)
    again = optim.SparseAdam(turned.named_parameters(), lr=0.1)
    auto_resume(path, turned, again)
    assert steps(turned, again, 4) == expected
    wrong = seeded(lambda: Tables("b", "a"), 9)
    auto_resume(path, wrong)
    plain = optim.SparseAdam(wrong.named_parameters(), lr=0.1)
    plain.load_state_dict(torch.load(path, weights_only=False)["optimizer"])
    assert steps(wrong, plain, 4) != expected


def test_state_of_what_the_plan_computes_is_a_question(path: Path) -> None:
    # A weight-normed layer folded into a plain one: the moments of g and v are not those of the weight.
    class Net(nn.Module):
        def __init__(self, normed: bool) -> None:
            super().__init__()
            layer = nn.Linear(5, 3)
            self.layer = nn.utils.parametrizations.weight_norm(layer) if normed else layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).mean(1)

    model = seeded(lambda: Net(True))
    optimizer = one(model)
    train(model, optimizer, batches(3))
    write(path, model, optimizer)
    fresh = seeded(lambda: Net(False), 9)
    again = one(fresh)
    with pytest.raises(
        UndecidedError, match=r"CKD608 the optimizer state of 1 parameters cannot be carried"
    ) as error:
        auto_resume(path, fresh, again)
    assert "weight_norm" in str(error.value) and "drop-state=layer.weight" in str(error.value)
    receipt = auto_resume(path, fresh, again, decisions=["drop-state=layer.weight"])
    assert receipt.optimizers[0].fresh == {"layer.weight": "decided"}
    assert again.state[fresh.layer.bias]["step"] == 3


def test_steps_that_differ_are_asked_before_they_become_one(path: Path) -> None:
    model = seeded(lambda: Old(fused=False))
    optimizer = one(model)
    train(model, optimizer, batches(4))
    optimizer.state[model.attn.k.weight]["step"] += 1
    write(path, model, optimizer)
    fresh = seeded(Old, 9)
    again = one(fresh)
    before = [p.clone() for p in fresh.parameters()]
    with pytest.raises(UndecidedError, match=r"`step` differs.*attn\.qkv\.weight"):
        auto_resume(path, fresh, again)
    assert all(map(torch.equal, before, fresh.parameters())) and not again.state
    auto_resume(path, fresh, again, decisions=["drop-state=attn.qkv.weight"])
    assert not again.state[fresh.attn.qkv.weight]


def test_two_optimizers_by_position_and_by_name(path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g, self.d = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.g(x) + self.d(x)).mean(1)

    def both(model: Pair) -> list[optim.Optimizer]:
        parts = (model.g.named_parameters(prefix="g"), model.d.named_parameters(prefix="d"))
        return [optim.Adam(part, lr=lr) for part, lr in zip(parts, (0.1, 0.2), strict=True)]

    model = seeded(Pair)
    optimizers = both(model)
    for optimizer in optimizers:
        train(model, optimizer, batches(2))
    write(path, model, optimizers)
    fresh = seeded(Pair, 9)
    again = both(fresh)
    receipt = auto_resume(path, fresh, again)
    assert [o.carried for o in receipt.optimizers] == [2, 2]
    assert torch.equal(
        again[1].state[fresh.d.weight]["exp_avg"], optimizers[1].state[model.d.weight]["exp_avg"]
    )
    with pytest.raises(UndecidedError, match="1 optimizers are given, the checkpoint has 2"):
        auto_resume(path, fresh, again[0])
    named = {"gen": optimizers[0].state_dict(), "disc": optimizers[1].state_dict()}
    torch.save({"model": model.state_dict(), "optimizers": named}, path)
    turned = {"disc": again[1], "gen": again[0]}
    assert [o.name for o in auto_resume(path, fresh, turned).optimizers] == ["disc", "gen"]


def test_an_optimizer_of_another_object_is_refused(path: Path) -> None:
    started(one, path)
    with pytest.raises(ApplyError, match="parameters that the model does not"):
        auto_resume(path, seeded(Old, 9), one(seeded(Old, 9)))


def test_saved_names_that_contradict_the_shapes_are_a_question(path: Path) -> None:
    model, optimizer = started(one, path)
    state = optimizer.state_dict()
    names = state["param_groups"][0]["param_names"]
    names[0], names[-1] = names[-1], names[0]
    torch.save({"model": model.state_dict(), "optimizer": state}, path)
    fresh = seeded(Old, 9)
    with pytest.raises(UndecidedError, match="CKD602"):
        auto_resume(path, fresh, one(fresh))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: optim.lr_scheduler.MultiStepLR(o, [2, 5]),
        lambda o: optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
        lambda o: optim.lr_scheduler.ChainedScheduler(
            [optim.lr_scheduler.ConstantLR(o), optim.lr_scheduler.ExponentialLR(o, 0.9)]
        ),
        lambda o: optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    ],
    ids=["OneCycle", "WarmRestarts", "MultiStep", "Lambda", "Chained", "Cyclic"],
)
def test_schedulers_go_on(path: Path, make: Any) -> None:  # fmt: skip
    model = seeded(Old)
    optimizer = one(model)
    schedule = make(optimizer)
    train(model, optimizer, batches(4), schedule)
    write(path, model, optimizer, scheduler=schedule.state_dict())
    expected = train(model, optimizer, batches(8)[4:], schedule)
    fresh = seeded(Old, 9)
    again = one(fresh)
    other = make(again)
    auto_resume(path, fresh, again, other)
    assert train(fresh, again, batches(8)[4:], other) == expected


def test_a_scheduler_follows_its_groups(path: Path) -> None:
    model = seeded(Old)
    optimizer = split(model)
    optimizer.param_groups[0]["lr"] = 0.02
    schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    train(model, optimizer, batches(4), schedule)
    write(path, model, optimizer, scheduler=schedule.state_dict())
    expected = train(model, optimizer, batches(8)[4:], schedule)
    fresh = seeded(Old, 9)
    again = split(fresh)
    again.param_groups.reverse()
    other = optim.lr_scheduler.StepLR(again, 2, 0.5)
    auto_resume(path, fresh, again, other)
    assert other.base_lrs == [0.01, 0.02]
    assert train(fresh, again, batches(8)[4:], other) == expected


def test_a_scheduler_of_another_kind_is_refused(path: Path) -> None:
    model = seeded(Old)
    optimizer = one(model)
    plateau = optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    write(path, model, optimizer, scheduler={"gizmo": 1})
    with pytest.raises(UndecidedError, match="another kind of scheduler"):
        auto_resume(path, model, optimizer, plateau)


def test_an_empty_scaler_state_is_a_question(path: Path) -> None:
    model = seeded(Old)
    write(path, model, one(model), scaler=torch.amp.GradScaler("cpu", enabled=False).state_dict())
    with pytest.raises(UndecidedError, match="disabled GradScaler"):
        auto_resume(path, model, scaler=torch.amp.GradScaler("cpu"))
