"""The last part of a load: large tensors are copied and compared by several threads, outside of torch."""

from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from ckptdoctor.apply import commit as module
from ckptdoctor.apply.commit import SHARE, Pending, commit
from ckptdoctor.errors import VerifyError
from ckptdoctor.formats.parallel import WORTHWHILE, in_threads, together
from ckptdoctor.ops.bits import PIECE, Copy

SIZES = (0, 1, PIECE // 4, PIECE // 4 + 1, SHARE // 4 - 1, SHARE // 4 + 1, WORTHWHILE // 4 + 7)


def due(sizes: tuple[int, ...] = SIZES) -> tuple[Pending, list[Tensor]]:
    values = [torch.randn(size) for size in sizes]
    for value in values:
        value[-1:] = float("nan")
    pending = Pending()
    for i, value in enumerate(values):
        pending.add(f"w{i}", torch.zeros_like(value), value)
    return pending, values


def run(pending: Pending) -> None:
    commit(pending, compare=True, unchanged=lambda: None)


def assert_there(pending: Pending) -> None:
    for tensor, value in zip(pending.tensors.values(), pending.values.values(), strict=True):
        assert torch.equal(tensor.view(torch.uint8), value.view(torch.uint8))


def test_tensors_of_all_sizes_are_copied_to_the_last_byte() -> None:
    pending, _ = due()
    run(pending)
    assert_there(pending)


def test_views_and_other_dtypes_are_left_to_torch() -> None:
    large = torch.randn(1 << 10, 1 << 10)
    pending = Pending()
    pending.add("transposed", torch.zeros_like(large).t(), large.t())
    pending.add("cast", torch.zeros(1 << 20, dtype=torch.float64), large.view(-1))
    pending.add("copied", torch.zeros(1 << 20), torch.arange(float(1 << 20)))
    run(pending)
    assert torch.equal(pending.tensors["transposed"], large.t())
    assert torch.equal(pending.tensors["cast"], large.view(-1).double())
    assert torch.equal(pending.tensors["copied"], torch.arange(float(1 << 20)))


def test_autograd_is_told_of_what_threads_write() -> None:
    weight = torch.nn.Parameter(torch.zeros(WORTHWHILE // 4))
    loss = (weight * weight).sum()
    pending = Pending()
    pending.add("w", weight, torch.ones(WORTHWHILE // 4))
    run(pending)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors_are_filled_as_well() -> None:
    with torch.inference_mode():
        pending, _ = due()
        run(pending)
        assert_there(pending)


def test_of_two_tensors_over_the_same_memory_the_later_value_stays() -> None:
    whole = torch.zeros(WORTHWHILE // 2)
    pending = Pending()
    pending.add("first", whole[: WORTHWHILE // 4], torch.ones(WORTHWHILE // 4))
    pending.add("second", whole[WORTHWHILE // 8 :], torch.full((3 * WORTHWHILE // 8,), 2.0))
    run(pending)
    assert whole.tolist() == [1.0] * (WORTHWHILE // 8) + [2.0] * (3 * WORTHWHILE // 8)


def test_where_no_thread_can_be_started_all_is_copied_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "in_threads", refused)
    pending, _ = due()
    run(pending)
    assert_there(pending)


def test_a_byte_that_did_not_arrive_is_found_and_its_key_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pending, values = due()
    last = pending.tensors["w6"]
    right = module.copied_bytes

    def wrong(job: Copy) -> bool:
        copied = right(job)
        inside = job.into <= last.data_ptr() + last.nbytes - 4 < job.into + job.nbytes
        return copied and not inside

    monkeypatch.setattr(module, "copied_bytes", wrong)
    with pytest.raises(VerifyError, match="`w6` changed while they were loaded"):
        run(pending)
    assert len(values) == 7


def test_consecutive_items_are_put_together() -> None:
    assert list(together([1, 2, 3, 9, 1], int, 5)) == [[1, 2, 3], [9], [1]]
    assert list(together([], int, 5)) == []
    assert list(in_threads(str, [1, 2, 3], WORTHWHILE)) == ["1", "2", "3"]
