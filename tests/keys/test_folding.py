"""Folding is exact: what a fold shows is what is there, nothing more and nothing less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.keys import PatternError, fold, join, matches, natural_key, printable, split, unfold

SEGMENTS = st.one_of(
    st.sampled_from(
        ["layer1", "layer2", "conv1", "weight", "bias", "0", "1", "2", "10", "007", "", "x{a}", "a,b"]
    ),
    st.text(alphabet="ab1{},*\\:.\n\u202e-", max_size=4),
    st.integers(0, 12).map(str),
)
KEYS = st.lists(st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join), max_size=40, unique=True)


@given(KEYS)
def test_unfold_gives_back_exactly_the_keys(keys: list[str]) -> None:
    folds = fold(keys)
    assert sorted(k for f in folds for k in unfold(f.text)) == sorted(keys)
    assert sorted(k for f in folds for k in f.keys) == sorted(keys)
    assert all(f.count == len(unfold(f.text)) for f in folds)


@given(KEYS)
def test_a_fold_is_a_pattern_of_its_keys_and_safe_to_print(keys: list[str]) -> None:
    for f in fold(keys):
        assert f.text.isprintable()
        assert [k for k in keys if matches(f.text, k)] == [k for k in keys if k in f.keys]


@given(KEYS)
def test_folding_does_not_depend_on_order(keys: list[str]) -> None:
    assert fold(keys) == fold(reversed(keys))


def texts(keys: list[str]) -> list[str]:
    return [f.text for f in fold(keys)]


def test_numbers_fold_as_segments_and_inside_segments() -> None:
    assert texts([f"layers.{i}.attn.qkv.weight" for i in range(12)]) == ["layers.{0..11}.attn.qkv.weight"]
    assert texts([f"denseblock{i}.norm.bias" for i in range(1, 5)]) == ["denseblock{1..4}.norm.bias"]
    assert texts(["fc.bias", "fc.weight"]) == ["fc.{bias,weight}"]


def test_gaps_are_shown() -> None:
    assert texts([f"h.{i}.w" for i in (0, 1, 2, 5, 7, 8)]) == ["h.{0..2,5,7..8}.w"]


def test_no_product_is_formed_that_does_not_exist() -> None:
    assert texts(["h.0.a.1.b", "h.1.a.0.b"]) == ["h.0.a.1.b", "h.1.a.0.b"]


def test_numbers_sort_as_numbers() -> None:
    assert texts(["a.10.x", "a.2.y", "b.w"]) == ["a.2.y", "a.10.x", "b.w"]
    assert sorted(["l.10", "l.2", "k.3"], key=natural_key) == ["k.3", "l.2", "l.10"]


def test_a_hundred_thousand_keys_fold_in_about_a_second() -> None:
    keys = [
        f"module.layers.{i}.mlp.{n}.{leaf}"
        for i in range(10_000)
        for n in "abcde"
        for leaf in ("bias", "weight")
    ]
    assert len(fold(keys)) == 5


@pytest.mark.parametrize(
    "text",
    ["a.{", "a}", "{0..3", "a\\q", "a\\xZZ", "**x", "{3..1}", "{a.b,c}", "a.{0..99999999}", "w.*", "w.{i}"],
)
def test_what_is_no_fold_is_refused(text: str) -> None:
    with pytest.raises(PatternError):
        unfold(text)


@given(st.text())
def test_split_and_join(key: str) -> None:
    assert join(split(key)) == key


@given(st.text())
def test_printable_is_printable(text: str) -> None:
    assert printable(text).isprintable()


def test_printable_names_what_it_hides() -> None:
    assert printable("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\x0a\\u202eb"
    assert printable("ключ.weight") == "ключ.weight"
