"""Resuming after renames, reorders and splits: the loss curve goes on bit for bit; plain torch's does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ckptdoctor.errors import UndecidedError
from ckptdoctor.training.receipt import ResumeReceipt
from ckptdoctor.training.resume import auto_resume
from tests.training.zoo import KINDS, RENAMES, SPLIT, Kind, New, Old, batches, seeded, train

BEFORE, AFTER = 5, 6


def interrupted(
    kind: Kind, path: Path, named: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[list[float], nn.Module]:
    """Train, save by plain torch, go on: the losses after the interruption, and the model then."""
    model = seeded(Old).to(dtype)
    optimizer = kind.make(model.named_parameters() if named else model.parameters())
    data = batches(BEFORE + AFTER, dtype)
    train(model, optimizer, data[:BEFORE])
    torch.save({"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return train(model, optimizer, data[BEFORE:]), model


def resumed(
    kind: Kind, path: Path, model: nn.Module, decisions: list[str]
) -> tuple[list[float], ResumeReceipt]:
    optimizer = kind.make(model.named_parameters())
    receipt = auto_resume(path, model, optimizer, decisions=decisions)
    data = batches(BEFORE + AFTER, next(model.parameters()).dtype)
    return train(model, optimizer, data[BEFORE:]), receipt


def plain_torch(kind: Kind, path: Path, fused: bool = True) -> list[float]:
    """What a person writes: the weights in the right places (let us say), the optimizer by its own loader."""
    saved = torch.load(path, weights_only=False)
    model = seeded(lambda: New(fused), 7)
    optimizer = kind.make(model.named_parameters())
    auto_resume(path, model, decisions=RENAMES if fused else SPLIT)
    optimizer.load_state_dict(saved["optimizer"])
    if kind.name == "Adam-fused":  # torch 2.13 runs over the end of the wrong moments: a segmentation fault
        shapes = [(p.shape, optimizer.state[p]["exp_avg"].shape) for p in model.parameters()]
        assert any(a != b for a, b in shapes)
        raise RuntimeError("moments of other shapes")
    return train(model, optimizer, batches(BEFORE + AFTER)[BEFORE:])


def fails_or_diverges(kind: Kind, path: Path, expected: list[float], fused: bool = True) -> bool:
    try:
        return plain_torch(kind, path, fused) != pytest.approx(expected, rel=1e-4)
    except (RuntimeError, ValueError, KeyError, IndexError):
        return True


def same_values(new: nn.Module, old: nn.Module) -> bool:
    """Bit for bit, under the renames."""
    pairs = dict(text.removeprefix("rename=").replace(".**", "").split("=") for text in RENAMES)
    theirs = {f"{pairs[k.split('.')[0]]}.{k.partition('.')[2]}": v for k, v in old.state_dict().items()}
    ours = new.state_dict()
    return len(ours) == len(theirs) and all(torch.equal(ours[k], v) for k, v in theirs.items())


@pytest.mark.parametrize("kind", [k for k in KINDS if k.name != "LBFGS"], ids=lambda k: k.name)
def test_renamed_and_reordered_the_loss_curve_goes_on_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    expected, uninterrupted = interrupted(kind, path)
    model = seeded(New, 7)
    losses, receipt = resumed(kind, path, model, RENAMES)
    assert receipt.epoch == 3
    assert receipt.optimizers[0].carried == len(list(model.parameters()))
    assert losses == expected
    assert same_values(model, uninterrupted)
    assert fails_or_diverges(kind, path, expected)


def test_lbfgs_is_cut_and_laid_in_the_new_order(tmp_path: Path) -> None:
    # Its dot products run over all parameters in their order, so another order rounds otherwise.
    kind, path = next(k for k in KINDS if k.name == "LBFGS"), tmp_path / "last.pth"
    expected, _ = interrupted(kind, path, dtype=torch.float64)
    losses, _ = resumed(kind, path, seeded(New, 7).double(), RENAMES)
    assert losses == pytest.approx(expected, rel=1e-9)
    assert fails_or_diverges(kind, path, expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_wrapped_and_unchanged_the_loss_curve_goes_on_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    expected, _ = interrupted(kind, path)
    model = nn.DataParallel(seeded(Old, 7))
    losses, receipt = resumed(kind, path, model, [])
    assert losses == expected
    assert receipt.optimizers[0].carried == len(list(model.parameters()))


@pytest.mark.parametrize("kind", [k for k in KINDS if k.elementwise], ids=lambda k: k.name)
def test_qkv_split_in_three_the_loss_curve_goes_on_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    expected, _ = interrupted(kind, path)
    model = seeded(lambda: New(fused=False), 7)
    losses, receipt = resumed(kind, path, model, SPLIT)
    assert receipt.optimizers[0].moved == 6  # weight and bias of q, k and v
    assert losses == expected
    assert fails_or_diverges(kind, path, expected, fused=False)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.elementwise], ids=lambda k: k.name)
def test_q_k_v_joined_again_the_loss_curve_goes_on_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    model = seeded(lambda: Old(fused=False))
    optimizer = kind.make(model.named_parameters())
    data = batches(BEFORE + AFTER)
    train(model, optimizer, data[:BEFORE])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    expected = train(model, optimizer, data[BEFORE:])
    losses, receipt = resumed(kind, path, seeded(New, 7), SPLIT)
    assert receipt.optimizers[0].moved == 2
    assert losses == expected


def test_an_optimizer_of_whole_tensors_asks_before_they_are_split(tmp_path: Path) -> None:
    kind, path = next(k for k in KINDS if k.name == "Adafactor"), tmp_path / "last.pth"
    interrupted(kind, path)
    model = seeded(lambda: New(fused=False), 7)
    with pytest.raises(UndecidedError, match=r"CKD608.*\n(.*\n)*.*drop-state=attention") as error:
        resumed(kind, path, model, SPLIT)
    assert "Adafactor looks at whole tensors" in str(error.value)
    _, receipt = resumed(kind, path, model, [*SPLIT, "drop-state=attention.**"])
    assert set(receipt.optimizers[0].fresh) == {
        f"attention.{p}.{leaf}" for p in ("q", "k", "v", "proj") for leaf in ("weight", "bias")
    }
