"""Siblings are not exchanged against the names that both sides have."""

from ckptdoctor.align import align
from tests.align.pairs import Shapes, batchnorm, claims, linear, norm, tree

D = 4


def block(path: str) -> Shapes:
    """An attention block whose parts have the names of three code bases."""
    squares = {
        k: v for n in ("to_q", "k", "v_proj", "out_proj") for k, v in linear(f"{path}.{n}", D, D).items()
    }
    return (
        squares
        | norm(f"{path}.ln_1", D)
        | norm(f"{path}.ffn_norm", D)
        | linear(f"{path}.linear1", 4 * D, D)
        | linear(f"{path}.fc2", D, 4 * D)
    )


def test_a_block_that_lost_its_number_does_not_push_another_out_of_its_own():
    packed: Shapes = {"ln_2.ffn_norm.0.in_proj_weight": (3 * D, D)}
    target = tree(packed, *(block(f"ln_2.mlp.{i}") for i in range(2)))
    found = align(tree(packed, block("ln_2.mlp"), block("ln_2.mlp.1")), target)
    assert claims(found).get("ln_2.mlp.1.k.weight", "ln_2.mlp.1.k.weight") == "ln_2.mlp.1.k.weight"
    assert found.verdict == "undecided"


def test_a_block_that_lost_its_number_is_not_taken_for_the_number_of_the_list_above():
    def part(path: str) -> Shapes:
        gates: Shapes = {f"{path}.c.weight_ih_l0": (6, 2), f"{path}.c.weight_hh_l0": (6, 2)}
        return gates | linear(f"{path}.wv", 8, 3)

    target = tree(*(part(f"stem.1.{i}") for i in range(2)))
    found = align(tree(part("stem.1"), part("stem.1.1")), target)
    assert claims(found).get("stem.1.1.wv.weight", "stem.1.1.wv.weight") == "stem.1.1.wv.weight"
    assert found.verdict == "undecided"


def test_a_list_that_counts_from_another_number_is_still_one_list():
    source = tree(*(block(f"layers.{i}") for i in range(1, 4)))
    target = tree(*(block(f"layers.{i}") for i in range(3)))
    found = align(source, target)
    assert found.verdict == "repairable"
    assert claims(found)["layers.1.k.weight"] == "layers.2.k.weight"


def test_a_bias_that_a_module_lost_is_not_taken_from_elsewhere_in_the_same_part():
    target = tree(block("decoder.attn"), linear("decoder.out", 3, D))
    source = tree({k: v for k, v in block("decoder.attn").items() if k != "decoder.attn.k.bias"})
    more = tree(
        {**{k: s.shape for k, s in source.specs.items()}, "decoder.mlp.bias": (D,)},
        linear("decoder.out", 3, D),
    )
    found = align(more, target)
    assert "decoder.attn.k.bias" not in claims(found)
    assert found.verdict == "undecided"


def test_two_lists_of_one_meaning_do_not_exchange_parts_of_their_blocks():
    def part(path: str, names: str) -> Shapes:
        q, k, v, o, first, last, up, down = (f"{path}.{name}" for name in names.split())
        squares = linear(q, D, D) | linear(k, D, D) | linear(v, D, D) | linear(o, D, D)
        norms = batchnorm(first, D) | batchnorm(last, D)
        return squares | norms | linear(up, 2 * D, D) | linear(down, D, 2 * D)

    lists = {
        "mlp": "to_q wk v to_out attention_norm ln_2 linear1 linear2",
        "ff": "q_proj to_k v_proj o ln1 ln2 fc1 dense2",
    }
    by = {"mlp": 1, "ff": 2}
    target = tree(*(part(f"{name}.{i}", lists[name]) for name in lists for i in range(4)))
    source = tree(*(part(f"{name}.{i + by[name]}", lists[name]) for name in lists for i in range(4)))
    for key, filled in claims(align(source, target)).items():
        assert filled.split(".")[0] == key.split(".")[0]


def test_a_layer_with_one_output_shows_that_matrices_are_turned():
    target = tree(*(linear(f"layers.{i}.q", D, D) | linear(f"layers.{i}.score", 1, D) for i in range(2)))
    source = tree({k: s.shape[::-1] if k.endswith("weight") else s.shape for k, s in target.specs.items()})
    found = align(source, target)
    for key in ("layers.0.q.weight", "layers.1.q.weight", "layers.1.score.weight"):
        assert claims(found).get(key, f"{key} | transpose(0,1)") == f"{key} | transpose(0,1)"


def test_one_turned_layer_does_not_show_that_its_square_neighbours_are():
    def block(i: int, name: str, shape: tuple[int, int]) -> Shapes:
        return {f"layers.{i}.{name}.weight": shape} | linear(f"layers.{i}.proj", D, D)

    source = tree(block(0, "aux", (D, 2 * D)), block(1, "query", (D, 2 * D)))
    target = tree(*(block(i, "query", (2 * D, D)) for i in range(2)))
    found = align(source, target)
    assert "layers.1.proj.weight" not in claims(found)
    assert {c.ops for c in found.matches["layers.1.proj.weight"].choices} == {(), ("transpose(0,1)",)}


def test_a_list_by_letters_beside_a_lost_tensor_is_read():
    target = tree(*(linear(f"body.{i}.fc", D, D) for i in range(3)), linear("head", 3, D))
    source = {
        f"body.{letter}.fc.{leaf}": s for letter in "abc" for leaf, s in (("weight", (D, D)), ("bias", (D,)))
    }
    source |= {"head.weight": (3, D)}
    found = align(tree(source), target)
    assert found.verdict == "undecided"
    assert all(
        s.split(".")[1] == "abc"[int(k.split(".")[1])] for k, s in claims(found).items() if "body" in k
    )


def test_turned_layers_below_a_module_called_embed_are_seen():
    def block(path: str) -> Shapes:
        return (
            linear(f"{path}.q", D, D) | linear(f"{path}.lin1", 2 * D, D) | linear(f"{path}.dense2", D, 2 * D)
        )

    target = tree(block("embed.0"), block("embed.1"))
    source = tree({k: s.shape[::-1] if k.endswith("weight") else s.shape for k, s in target.specs.items()})
    found = claims(align(source, target))
    assert found["embed.0.lin1.weight"] == "embed.0.lin1.weight | transpose(0,1)"
    assert found.get("embed.0.q.weight", "embed.0.q.weight | transpose(0,1)").endswith("| transpose(0,1)")
