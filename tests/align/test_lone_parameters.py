"""A parameter with a new name, alone: what its own name says decides, not that its shape is the only one left."""

from __future__ import annotations

import pytest

from ckptdoctor.align import align
from tests.align.pairs import Shapes, claimed, linear, norm, tree

SHAPES = [(), (1,), (3,), (1, 1, 6)]
REST = linear("trunk", 6, 4) | norm("norm", 6)


def blocks(name: str, count: int) -> list[Shapes]:
    return [linear(f"blocks.{i}.up", 8, 6) | {f"blocks.{i}.{name}": (6,)} for i in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("foo", "bar"),
        ("alpha", "beta"),
        ("scale", "shift"),
        ("logit_scale", "logit_bias"),
        ("logit_scale", "temperature"),  # of which one is the logarithm, or the inverse, of the other
        ("pixel_mean", "pixel_std"),
        ("latent_mean", "latent_logvar"),
        ("act_min", "act_max"),
        ("cls_token", "pos_token"),
    ],
)
def test_a_stranger_is_not_taken_for_it(name: str, other: str, shape: tuple[int, ...]) -> None:
    source, target = tree(REST, {other: shape}), tree(REST, {name: shape})
    found = align(source, target)
    assert set(claimed(source, target)) == set(REST)
    assert found.verdict == "undecided"
    assert name in {k for q in found.questions for k in q.targets} | set(found.matches)


@pytest.mark.parametrize("name", ["alpha", "mean"])
def test_nor_in_a_block(name: str) -> None:
    source, target = tree(*blocks("beta", 1)), tree(*blocks(name, 1))
    assert f"blocks.0.{name}" not in claimed(source, target)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("cls_token", "class_token"),
        ("pos_embed", "positional_embedding"),
        ("gamma", "layer_scale"),
        ("queries", "object_queries"),
        ("prompt", "prompts"),
        ("col_embed", "column_embed"),
    ],
)
def test_another_word_for_the_same_is(name: str, other: str) -> None:
    source, target = tree(REST, {other: (1, 1, 6)}), tree(REST, {name: (1, 1, 6)})
    assert claimed(source, target)[name] == other


def test_a_name_that_is_new_in_all_blocks_is_a_rename() -> None:
    source, target = tree(*blocks("ls1", 5)), tree(*blocks("scaling", 5))
    assert claimed(source, target)["blocks.3.scaling"] == "blocks.3.ls1"


@pytest.mark.parametrize(("name", "other"), [("scale", "shift"), ("mean", "std"), ("min_val", "max_val")])
def test_but_not_of_what_is_something_else(name: str, other: str) -> None:
    source, target = tree(*blocks(other, 5)), tree(*blocks(name, 5))
    assert not [k for k in claimed(source, target) if k.endswith(name)]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("student", "teacher"),
        ("actor", "critic"),
        ("encoder_norm", "decoder_norm"),
        ("visual_proj", "text_proj"),
        ("q_norm", "k_norm"),
        ("start", "end"),
        ("left", "right"),
        ("forward_lstm", "backward_lstm"),
        ("fc_mu", "fc_logvar"),
        ("age_head", "income_head"),  # no opposites, but each says what it is for
    ],
)
@pytest.mark.parametrize("part", [linear("", 9, 6), norm("", 7)])
def test_a_module_is_not_filled_from_its_opposite(name: str, other: str, part: Shapes) -> None:
    def beside(path: str) -> Shapes:
        return {f"{path}{leaf}": shape for leaf, shape in part.items()}

    source, target = tree(REST, beside(other)), tree(REST, beside(name))
    assert set(claimed(source, target)) == set(REST)
    assert align(source, target).verdict == "undecided"


def test_a_part_is_not_the_opposite_of_the_whole() -> None:
    apart = [linear(f"attn.{p}_proj", 8, 8) for p in "qkv"]
    source, target = tree(REST, *apart), tree(REST, linear("attn.qkv", 24, 8))
    sources = ", ".join(f"attn.{p}_proj.weight" for p in "qkv")
    assert claimed(source, target)["attn.qkv.weight"] == f"{sources} | concat(0)"
    assert claimed(target, source)["attn.k_proj.weight"] == "attn.qkv.weight | chunk(0,1,3)"
