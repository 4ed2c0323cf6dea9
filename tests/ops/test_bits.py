"""Comparing and copying by bits, against what the bytes themselves say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.ops import bits

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
ITEMS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits, NaN among them; for bool 0 and 1."""
    count = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).itemsize
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(high, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return raw.view(dtype).reshape(shape)


def as_bytes(tensor: torch.Tensor) -> bytes:
    row = tensor.contiguous().reshape(-1).clone()
    return row.view(torch.uint8).numpy().tobytes()


def laid_out(tensor: torch.Tensor, how: str) -> torch.Tensor:
    """The same values elsewhere in memory, in another layout."""
    if how == "turned":
        return tensor.mT.contiguous().mT
    if how == "part":  # neither at the beginning nor every value of its memory
        room = torch.zeros(tensor.shape[0], tensor.shape[1] * 2 + 1, dtype=tensor.dtype)
        room[:, 1 : 1 + tensor.shape[1]] = tensor
        return room[:, 1 : 1 + tensor.shape[1]]
    return tensor.clone()


SHAPES = st.tuples(st.integers(0, 9), st.integers(0, 9))
LAYOUTS = st.sampled_from(["plain", "turned", "part"])


@given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 99), LAYOUTS, LAYOUTS, st.data())
def test_one_bit_makes_the_difference(shape, dtype, seed, left, right, data) -> None:
    value = drawn(shape, dtype, seed)
    a, b = laid_out(value, left), laid_out(value, right)
    assert as_bytes(a) == as_bytes(b) and bits.same_bits(a, b)
    if value.numel():
        row = value.clone().reshape(-1).view(torch.uint8)
        at = data.draw(st.integers(0, row.numel() - 1))
        row[at] ^= 1
        assert not bits.same_bits(a, laid_out(row.view(dtype).reshape(shape), right))
    assert not bits.same_bits(a, laid_out(value[None], "plain")), "another shape"


@given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 99), LAYOUTS, LAYOUTS)
def test_what_is_copied_arrived(shape, dtype, seed, left, right) -> None:
    value = laid_out(drawn(shape, dtype, seed), right)
    into = laid_out(torch.zeros(shape, dtype=dtype), left)
    assert bits.copied(into, value)
    assert as_bytes(into) == as_bytes(value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("more", [-1, 0, 1, bits.PIECE + 3])
def test_large_tensors_are_copied_to_the_last_value(dtype: torch.dtype, more: int) -> None:
    value = drawn((bits.PIECE + more,), dtype, more + 7)
    into = torch.zeros_like(value)
    assert bits.copied(into, value) and as_bytes(into) == as_bytes(value)
    for at in (0, bits.PIECE - 2, value.numel() - 1):
        other = value.clone()
        other[at : at + 1].view(torch.uint8)[0] ^= 1
        assert not bits.same_bits(other, value)


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES), LAYOUTS, LAYOUTS), min_size=1, max_size=5))
def test_law_a_few_are_copied_together_or_left_alone(pairs) -> None:
    values = [laid_out(drawn(shape, dtype, 7), right) for shape, dtype, _, right in pairs]
    into = [laid_out(torch.zeros(shape, dtype=dtype), left) for shape, dtype, left, _ in pairs]
    before = [as_bytes(tensor) for tensor in into]
    found = bits.all_copied(into, values)
    plain = {left == right == "plain" and 0 not in shape for shape, _, left, right in pairs}
    assert found == [True] * len(pairs) or plain != {True}
    assert [as_bytes(tensor) for tensor in into] == ([as_bytes(v) for v in values] if found else before)
    more = [*values, torch.zeros(bits.SMALL)], [*into, torch.zeros(bits.SMALL)]
    assert bits.all_copied(*more) is None, "one is large"


def test_others_than_plain_ones_are_not_copied_together() -> None:
    value = torch.ones(2, dtype=torch.complex64)
    odd = [value.conj(), value.conj().imag, torch.ones(2).to_sparse(), torch.ones(2, device="meta")]
    odd += [torch.nn.Parameter(torch.ones(2)), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)]
    for tensor in odd:
        plain = torch.zeros(2, dtype=torch.float32 if tensor.is_quantized else tensor.dtype)
        assert bits.all_copied([plain], [tensor]) is None
        assert bits.all_copied([tensor], [plain]) is None
        assert bits.all_copied([tensor], [tensor]) is None
    assert bits.all_copied([torch.zeros(2)], [torch.ones(2, dtype=torch.int32)]) is None, "another dtype"
    assert bits.all_copied([torch.zeros(2)], [torch.ones(1, 2)]) is None, "another shape"


def test_a_value_that_does_not_arrive_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda into, value: real(into, value)[:1].add_(1))
    assert not bits.copied(torch.zeros(4), torch.ones(4))
    assert bits.all_copied([torch.zeros(4), torch.zeros(3)], [torch.ones(4), torch.ones(3)]) == [False, False]


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_a_piece_of_a_large_value_that_does_not_arrive_is_seen(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    copy, compare = bits._memory()
    done = []

    def leave_out(into: int, source: int, nbytes: int) -> None:
        if len(done) != piece:
            copy(into, source, nbytes)
        done.append(nbytes)

    monkeypatch.setattr(bits, "_memory", lambda: (leave_out, compare))
    value = torch.ones(2 * bits.PIECE + 5, dtype=torch.uint8)
    assert not bits.copied(torch.zeros_like(value), value)
    assert len(done) == 3


def test_other_kinds_of_memory() -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    assert bits.same_bits(value.conj(), value.conj().resolve_conj())
    assert not bits.same_bits(value.conj(), value)
    assert bits.same_bits(value.conj().imag, -value.imag), "a view that is negated when it is read"
    freed = torch.ones(3)
    parameter = torch.nn.Parameter(torch.ones(3))
    assert bits.same_bits(parameter, freed) and not bits.same_bits(parameter, freed.to("meta"))
    assert not bits.same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert bits.same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
