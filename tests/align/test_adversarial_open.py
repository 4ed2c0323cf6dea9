"""Traps that the engine still falls into."""

from ckptdoctor.align import align
from tests.align.pairs import Shapes, claimed, claims, linear, norm, tree
from tests.align.test_adversarial import D


def test_a_quantised_weight_is_not_a_weight():
    source = tree({"fc.qweight": (D, D), "fc.scales": (D,), "fc.qzeros": (D,), "fc.bias": (D,)})
    assert "fc.weight" not in claimed(source, tree(linear("fc", D, D)))


def test_biases_under_other_names_are_no_other_model():
    def block(i: int, old: bool) -> Shapes:
        attn = f"layers.{i}.attn"
        bias = {f"{attn}.q_bias": (D,), f"{attn}.v_bias": (D,)}
        new = {f"{attn}.query.bias": (D,), f"{attn}.value.bias": (D,)}
        weights = {f"{attn}.{n}.weight": (D, D) for n in ("query", "key", "value", "out")}
        return (
            weights
            | (bias if old else new)
            | norm(f"layers.{i}.norm", D)
            | linear(f"layers.{i}.fc", 4 * D, D)
        )

    source, target = (tree(*(block(i, old) for i in range(3))) for old in (True, False))
    alignment = align(source, target)
    assert alignment.verdict != "incompatible"
    assert claims(alignment).get("layers.1.attn.query.bias", "layers.1.attn.q_bias") == "layers.1.attn.q_bias"
    assert claims(alignment)["layers.2.attn.key.weight"] == "layers.2.attn.key.weight"


def test_a_tensor_that_a_module_has_lost_is_not_taken_from_a_stranger():
    source = tree({"raven.weight": (2, 2), "0.bias": (2,), "1.weight": (2, 2), "1.bias": (2,)})
    found = align(source, tree(linear("0", 2, 2), linear("1", 2, 2)))
    assert found.verdict == "undecided"
    assert "0.weight" not in claims(found)
    assert [c.sources for c in found.matches["0.weight"].choices] == [("raven.weight",)]
