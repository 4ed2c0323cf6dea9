"""What only fits in another layout gets it where something else shows that it has it, and is asked about where not."""

from __future__ import annotations

import pytest

from ckptdoctor.align import align
from ckptdoctor.decisions import Decision
from ckptdoctor.trees import ParamTree
from tests.align.pairs import Shapes, claimed, conv, linear, norm, tree

TURN = "transpose(0,1)"


def matrix(path: str, out: int, into: int) -> Shapes:
    return linear(path, out, into, bias=False)


def layers(odd: int | None = None, path: str = "layers") -> ParamTree:
    sizes = [(24, 8) if i == odd else (8, 24) for i in range(6)]
    return tree(*(matrix(f"{path}.{i}.up", *size) for i, size in enumerate(sizes)))


def decoder(turned: bool, head: bool = False) -> ParamTree:
    """Blocks without biases, as Llama's: two matrices up and one down, fewer keys and values than queries."""
    sizes = {
        "q": (16, 16),
        "k": (4, 16),
        "v": (4, 16),
        "o": (16, 16),
        "gate": (40, 16),
        "up": (40, 16),
        "down": (16, 40),
    }
    blocks = [
        matrix(f"layers.{i}.{name}_proj", *(size[::-1] if turned else size)) | norm(f"layers.{i}.norm", 16)
        for i in range(3)
        for name, size in sizes.items()
    ]
    return tree(
        {"embed_tokens.weight": (90, 16)}, *blocks, matrix("lm_head", *((16, 90) if head else (90, 16)))
    )


@pytest.mark.parametrize("path", ["layers", "blocks", "module.layers"])
def test_one_matrix_alone_among_its_like_is_asked_about(path: str) -> None:
    source, target = layers(2, path), layers()
    assert set(claimed(source, target)) == set(target.specs) - {"layers.2.up.weight"}
    (question,) = align(source, target).questions
    assert question.targets == ("layers.2.up.weight",)
    assert [flag for flag, _ in question.flags] == [
        f"--op 'layers.2.up.weight={TURN}'",
        "--reinit 'layers.2.up.weight'",
    ]


@pytest.mark.parametrize(
    "answer", [Decision("op", f"layers.2.up.weight={TURN}"), Decision("reinit", "layers.2.up.weight")]
)
def test_either_answer_settles_it(answer: Decision) -> None:
    found = align(layers(2), layers(), [answer])
    assert found.verdict == "repairable" and not found.questions
    assert found.matches["layers.2.up.weight"].ops == ((TURN,) if answer.kind == "op" else ())


def test_a_head_alone_is_asked_about() -> None:
    rest = conv("conv", 8, 3) | norm("norm", 8)
    source, target = tree(rest, matrix("head", 8, 10)), tree(rest, matrix("head", 10, 8))
    assert set(claimed(source, target)) == set(rest)


def test_a_table_is_never_turned() -> None:
    rest = linear("a", 8, 4) | linear("b", 4, 8)
    source = tree(
        {"embedding.weight": (16, 8)}, linear("a", 4, 8), linear("b", 8, 4) | {"a.bias": (8,), "b.bias": (4,)}
    )
    target = tree({"embedding.weight": (8, 16)}, rest)
    assert claimed(source, target)["a.weight"] == f"a.weight | {TURN}"
    assert "embedding.weight" not in claimed(source, target)


def test_a_network_backwards_is_not_the_same_turned() -> None:
    """Without a bias a decoder's matrices have the shapes of an encoder's, turned."""
    source = tree(matrix("fc1", 16, 8), matrix("fc2", 8, 16))
    target = tree(matrix("fc1", 8, 16), matrix("fc2", 16, 8))
    assert claimed(source, target) == {}
    (question,) = align(source, target).questions
    assert set(question.targets) == set(target.specs)


def test_a_bias_shows_where_the_outputs_are() -> None:
    rest = conv("conv", 8, 3) | norm("norm", 8)
    source = tree(rest, {"head.weight": (8, 10), "head.bias": (10,)})
    target = tree(rest, linear("head", 10, 8))
    assert claimed(source, target)["head.weight"] == f"head.weight | {TURN}"


def test_a_kernel_is_turned_also_alone() -> None:
    rest = conv("conv", 8, 3) | norm("norm", 8)
    source, target = tree(rest, {"head.kernel": (8, 10)}), tree(rest, matrix("head", 10, 8))
    assert claimed(source, target)["head.weight"] == f"head.kernel | {TURN}"


@pytest.mark.parametrize("head", [True, False])
def test_where_all_are_turned_and_nothing_else_explains_it_they_are(head: bool) -> None:
    source, target = decoder(turned=True, head=head), decoder(turned=False)
    found = claimed(source, target)
    assert set(found) == set(target.specs)
    turned = {k for k, text in found.items() if text.endswith(TURN)}
    assert turned == {k for k in target.specs if "_proj" in k} | ({"lm_head.weight"} if head else set())


CONTEXT = conv("stem", 8, 3) | norm("norm", 8)


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ((8, 8, 1, 7), (8, 8, 7, 1)),  # a kernel along the other side
        ((1, 16, 3, 3), (16, 1, 3, 3)),  # sixteen inputs, or sixteen channels for themselves
        ((16, 1, 3, 3), (1, 16, 3, 3)),
        ((1, 16, 1, 1), (16, 1, 1, 1)),
        ((1, 8, 5), (8, 1, 5)),
        ((8, 1, 5), (1, 8, 5, 1)),
    ],
)
def test_a_modules_axes_are_not_exchanged_because_the_number_fits(
    have: tuple[int, ...], want: tuple[int, ...]
) -> None:
    source, target = tree(CONTEXT, {"mix.weight": have}), tree(CONTEXT, {"mix.weight": want})
    assert set(claimed(source, target)) == set(CONTEXT)
    (question,) = align(source, target).questions
    assert question.targets == ("mix.weight",)


@pytest.mark.parametrize(
    ("key", "have", "want"),
    [
        ("mix.weight", (8, 16), (8, 16, 1, 1)),  # linear, and a convolution of one pixel
        ("mix.weight", (8, 16, 1, 1), (8, 16)),
        ("mix.weight", (8, 4, 5), (8, 4, 5, 1)),  # one-dimensional, and two
        ("mix.weight", (8, 36), (8, 4, 3, 3)),  # behind a flatten
        ("mix.weight", (1, 1, 1, 8), (1, 8, 1, 1)),  # one value a channel, wherever channels are
        ("mix.weight", (8,), (1, 8, 1, 1)),
        ("positions", (1, 50, 8), (50, 1, 8)),  # a table with an axis for the batch
    ],
)
def test_axes_that_only_carry_the_shape_are_added_and_moved(
    key: str, have: tuple[int, ...], want: tuple[int, ...]
) -> None:
    source, target = tree(CONTEXT, {key: have}), tree(CONTEXT, {key: want})
    assert claimed(source, target)[key] == f"{key} | reshape({','.join(map(str, want))})"
