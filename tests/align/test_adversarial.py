"""Small pairs made to tempt an engine into a wrong answer. Each test says what may and may not be claimed."""

from __future__ import annotations

from benchmarks.cases import read_case
from benchmarks.mutations import mutate
from ckptdoctor.align import align
from ckptdoctor.trees import ParamTree
from tests.align.pairs import FIXTURES, Shapes, batchnorm, claimed, claims, conv, linear, norm, tree

D = 16


def attention(path: str, q: str, k: str, v: str, o: str) -> Shapes:
    return {key: shape for name in (q, k, v, o) for key, shape in linear(f"{path}.{name}", D, D).items()}


# --- names that tell nothing


def test_numbered_projections_are_not_told_apart():
    source = tree(attention("attn", "w1", "w2", "w3", "w4"))
    assert claimed(source, tree(attention("attn", "q_proj", "k_proj", "v_proj", "out_proj"))) == {}


def test_anonymous_tensors_of_equal_shape_are_not_claimed_by_their_place():
    layers = [s for i in range(3) for s in linear(f"{i}", D, D).values()]
    source = tree({f"param_{i}": shape for i, shape in enumerate(layers)})
    assert claimed(source, tree(linear("0", D, D), linear("2", D, D), linear("4", D, D))) == {}


def test_hash_names_are_not_claimed_by_their_place():
    shapes = list((conv("a", 8, 8) | conv("b", 8, 8) | conv("c", 8, 8)).values())
    source = tree(dict(zip(("9f1c", "03ab", "77d0"), shapes, strict=True)))
    assert claimed(source, tree(conv("conv1", 8, 8), conv("conv2", 8, 8), conv("conv3", 8, 8))) == {}


def test_two_heads_of_equal_shape_are_not_told_apart():
    source = tree(linear("trunk", D, 4), linear("age", 2, D), linear("income", 2, D))
    target = tree(linear("trunk", D, 4), linear("heads.0", 2, D), linear("heads.1", 2, D))
    assert set(claimed(source, target)) == {"trunk.weight", "trunk.bias"}


def test_two_towers_of_equal_shape_are_not_told_apart():
    def towers(a: str, b: str) -> ParamTree:
        return tree(
            *(linear(f"{t}.{n}", D, D) | norm(f"{t}.n{n}", D) for t in (a, b) for n in ("fc1", "fc2"))
        )

    assert claimed(towers("alpha", "omega"), towers("left", "right")) == {}


def test_blocks_without_numbers_are_not_told_apart():
    def blocks(*names: str) -> ParamTree:
        return tree(
            *(linear(f"blocks.{n}.fc1", 4 * D, D) | linear(f"blocks.{n}.fc2", D, 4 * D) for n in names)
        )

    assert claimed(blocks("maple", "birch", "ash"), blocks("0", "1", "2")) == {}


def test_encoder_and_decoder_need_their_names():
    def both(a: str, b: str) -> ParamTree:
        return tree(*(linear(f"{s}.layers.{i}.fc", D, D) for s in (a, b) for i in range(2)))

    assert claimed(both("first_half", "other_half"), both("encoder", "decoder")) == {}
    good = claimed(both("dec", "enc"), both("encoder", "decoder"))
    assert good["encoder.layers.1.fc.weight"] == "enc.layers.1.fc.weight"
    assert len(good) == 8


def test_embeddings_of_equal_shape_need_their_names():
    source = tree({"table_x": (32, D), "table_y": (32, D)})
    target = tree({"tok_emb.weight": (32, D), "pos_emb.weight": (32, D)})
    assert claimed(source, target) == {}
    named = tree({"wpe.weight": (32, D), "wte.weight": (32, D)})
    assert claimed(named, target) == {"tok_emb.weight": "wte.weight", "pos_emb.weight": "wpe.weight"}


def test_gate_and_up_need_their_names():
    def mlp(gate: str, up: str, down: str) -> ParamTree:
        layers = [mlp_layer for i in range(2) for mlp_layer in (
            linear(f"layers.{i}.mlp.{gate}", 4 * D, D, bias=False),
            linear(f"layers.{i}.mlp.{up}", 4 * D, D, bias=False),
            linear(f"layers.{i}.mlp.{down}", D, 4 * D, bias=False),
        )]  # fmt: skip
        return tree(*layers)

    found = claimed(mlp("w_a", "w_b", "w_c"), mlp("gate_proj", "up_proj", "down_proj"))
    assert not any("gate" in k or "up" in k for k in found)


# --- order that misleads


def test_projections_registered_in_another_order_follow_their_names():
    source = attention("attn", "key", "value", "query", "out")
    found = claimed(tree(source), tree(attention("attn", "q_proj", "k_proj", "v_proj", "out_proj")))
    assert found["attn.q_proj.weight"] == "attn.query.weight"
    assert found["attn.k_proj.bias"] == "attn.key.bias"
    assert found["attn.v_proj.weight"] == "attn.value.weight"
    assert found["attn.out_proj.weight"] == "attn.out.weight"


def test_a_shortcut_registered_first_is_still_the_shortcut():
    def block(*parts: tuple[str, str]) -> ParamTree:
        return tree(*(conv(f"layer.0.{c}", D, D, 1) | batchnorm(f"layer.0.{n}", D) for c, n in parts))

    source = block(("shortcut.conv", "shortcut.bn"), ("conv1", "bn1"), ("conv2", "bn2"))
    target = block(("conv1", "bn1"), ("conv2", "bn2"), ("downsample.0", "downsample.1"))
    found = claimed(source, target)
    assert found["layer.0.downsample.0.weight"] == "layer.0.shortcut.conv.weight"
    assert found["layer.0.downsample.1.running_var"] == "layer.0.shortcut.bn.running_var"
    assert found["layer.0.conv1.weight"] == "layer.0.conv1.weight"


def test_blocks_in_exchanged_order_follow_their_numbers():
    def blocks(*order: int) -> ParamTree:
        return tree(*(linear(f"blocks.{i}.fc", D, D) | norm(f"blocks.{i}.norm", D) for i in order))

    target = blocks(0, 1, 2)
    assert claimed(blocks(0, 2, 1), target) == {k: k for k in target.specs}


def test_a_sorted_header_does_not_put_layer_10_before_layer_2():
    def layers(stem: str) -> Shapes:
        return {k: s for i in range(12) for k, s in linear(f"{stem}.{i}.fc", D, D).items()}

    source = tree(dict(sorted(layers("layers").items())), ordered=False)
    found = claimed(source, tree(layers("h")))
    assert found == {k: k.replace("h.", "layers.", 1) for k in layers("h")}


def test_backwards_registration_follows_the_numbers():
    target = tree(*(linear(f"convs.{i}", D, D) for i in range(4)))
    source = tree(*(linear(f"layers.{i}", D, D) for i in reversed(range(4))))
    found = claimed(source, target)
    assert all(found.get(f"convs.{i}.weight", f"layers.{i}.weight") == f"layers.{i}.weight" for i in range(4))


# --- the same key is not the same tensor


def test_a_transposed_family_turns_its_square_member_too():
    def blocks(turn: bool) -> ParamTree:
        parts: Shapes = {}
        shapes = {
            "attn.c_attn": (3 * D, D),
            "attn.c_proj": (D, D),
            "mlp.c_fc": (4 * D, D),
            "mlp.c_proj": (D, 4 * D),
        }
        for i in range(3):
            for name, shape in shapes.items():
                parts[f"h.{i}.{name}.weight"] = shape[::-1] if turn else shape
        return tree(parts)

    found = claimed(blocks(turn=True), blocks(turn=False))
    assert found.get("h.1.mlp.c_fc.weight") == "h.1.mlp.c_fc.weight | transpose(0,1)"
    assert found.get("h.1.attn.c_proj.weight", "asked") in (
        "asked",
        "h.1.attn.c_proj.weight | transpose(0,1)",
    )


def test_an_index_shifted_by_dropout_is_another_layer():
    source = tree(linear("net.0", D, 4), linear("net.2", D, D), linear("net.4", 3, D))
    target = tree(linear("net.0", D, 4), linear("net.3", D, D), linear("net.6", 3, D))
    found = claimed(source, target)
    assert found["net.3.weight"] == "net.2.weight"
    assert found["net.6.bias"] == "net.4.bias"


def test_a_key_that_exists_on_both_sides_may_be_the_neighbour():
    source = tree(*(linear(f"{i}", D, D) for i in (0, 2, 4)), linear("6", 3, D))
    target = tree(*(linear(f"{i}", D, D) for i in (0, 3, 6)), linear("9", 3, D))
    found = claimed(source, target)
    assert found.get("6.weight", "4.weight") == "4.weight"
    assert "6.bias" not in found or found["6.bias"] == "4.bias"


def test_one_inserted_layer_makes_every_later_index_doubtful():
    source = tree(*(linear(f"{i}", D, D) for i in (0, 2, 4, 6)))
    target = tree(*(linear(f"{i}", D, D) for i in (0, 2, 4, 6, 8)))
    alignment = align(source, target)
    assert claims(alignment) == {}
    assert alignment.verdict in ("undecided", "incompatible")


def test_one_block_less_is_not_the_first_blocks():
    def deep(count: int) -> ParamTree:
        return tree(*(linear(f"layers.{i}.fc", D, D) | norm(f"layers.{i}.norm", D) for i in range(count)))

    for alignment in (align(deep(4), deep(6)), align(deep(6), deep(4))):
        assert claims(alignment) == {}
        assert alignment.verdict in ("undecided", "incompatible")


# --- roles do not mix


def test_a_leftover_bias_never_becomes_a_norm():
    source = tree(linear("attn.q_proj", D, D), linear("mlp.fc", D, D))
    target = tree(linear("attn.q_proj", D, D, bias=False), linear("mlp.fc", D, D), norm("norm1", D))
    found = claimed(source, target)
    assert "norm1.weight" not in found and "norm1.bias" not in found


def test_a_running_mean_never_becomes_a_running_var():
    source = tree(conv("conv", D, 3), {"bn.weight": (D,), "bn.bias": (D,), "bn.running_mean": (D,)})
    assert "bn.running_var" not in claimed(source, tree(conv("conv", D, 3), batchnorm("bn", D)))


def test_a_layer_scale_never_becomes_a_norm():
    def block(scale: str, stem: str) -> Shapes:
        return {f"{stem}.{scale}": (D,)} | norm(f"{stem}.norm", D) | linear(f"{stem}.fc", D, D)

    source = tree(*(block("gamma", f"blocks.{i}") for i in range(2)))
    target = tree(*(block("layer_scale", f"blocks.{i}") for i in range(2)))
    found = claimed(source, target)
    assert found["blocks.1.norm.weight"] == "blocks.1.norm.weight"
    assert found.get("blocks.1.layer_scale", "blocks.1.gamma") == "blocks.1.gamma"


def test_gamma_and_beta_of_a_norm_are_its_weight_and_bias():
    source = tree(
        {"encoder.LayerNorm.gamma": (D,), "encoder.LayerNorm.beta": (D,)}, linear("encoder.fc", 4, D)
    )
    target = tree(norm("encoder.LayerNorm", D), linear("encoder.fc", 4, D))
    found = claimed(source, target)
    assert found["encoder.LayerNorm.weight"] == "encoder.LayerNorm.gamma"
    assert found["encoder.LayerNorm.bias"] == "encoder.LayerNorm.beta"


def test_self_attention_is_not_cross_attention():
    def decoder(*names: str) -> ParamTree:
        parts = [attention(f"layers.{i}.{n}", "q", "k", "v", "o") for i in range(2) for n in names]
        return tree(*parts)

    source, target = decoder("encoder_attn", "self_attn"), decoder("attention", "cross_attention")
    found = claimed(source, target)
    wrong = {k: s for k, s in found.items() if ("cross" in k) != ("encoder_attn" in s)}
    assert wrong == {}


# --- layouts that shapes do not show


def test_a_reshape_is_never_a_transpose():
    found = claimed(tree(linear("fc", 6, 4, bias=False)), tree(linear("fc", 4, 6, bias=False)))
    assert found.get("fc.weight", "fc.weight | transpose(0,1)") == "fc.weight | transpose(0,1)"
    assert claimed(tree({"table": (2, 12)}), tree({"table": (6, 4)})) == {}


def test_packed_query_key_value_is_not_cut_in_three():
    source = tree(*(linear(f"layers.{i}.attention.query_key_value", 3 * D, D) for i in range(2)))
    target = tree(
        *(attention(f"layers.{i}.attention", "q_proj", "k_proj", "v_proj", "dense") for i in range(2))
    )
    assert not any("q_proj" in k or "k_proj" in k or "v_proj" in k for k in claimed(source, target))


def test_a_pointwise_convolution_is_a_linear_layer():
    source = tree({"proj_in.weight": (D, 8, 1, 1), "proj_in.bias": (D,)})
    found = claimed(source, tree(linear("proj_in", D, 8)))
    assert found == {"proj_in.weight": f"proj_in.weight | reshape({D},8)", "proj_in.bias": "proj_in.bias"}


def test_adapters_beside_the_base_weight_are_not_passed_over():
    base = {"q_proj.base_layer.weight": (D, D), "q_proj.lora_A.default.weight": (4, D),
            "q_proj.lora_B.default.weight": (D, 4)}  # fmt: skip
    alignment = align(
        tree(base, linear("fc", 3, D)), tree(linear("q_proj", D, D, bias=False), linear("fc", 3, D))
    )
    assert "q_proj.weight" not in claims(alignment)
    assert alignment.verdict in ("undecided", "incompatible")


def test_a_weight_norm_direction_is_not_the_weight():
    source = tree({"conv.weight_g": (D, 1, 1), "conv.weight_v": (D, 8, 3), "conv.bias": (D,)})
    found = claimed(source, tree({"conv.weight": (D, 8, 3), "conv.bias": (D,)}))
    assert found.get("conv.weight", "asked") in ("asked", "conv.weight_g, conv.weight_v | weight_norm(0)")


# --- which of several


def two_nets(*names: str) -> Shapes:
    return {f"{n}.{k}": s for n in names for k, s in (linear("fc1", D, 8) | linear("fc2", 3, D)).items()}


def test_student_or_teacher_is_a_persons_choice():
    target = tree(linear("fc1", D, 8), linear("fc2", 3, D))
    alignment = align(tree(two_nets("student", "teacher")), target)
    assert claims(alignment) == {}
    assert alignment.verdict == "undecided"


def test_keys_with_and_without_a_wrapper_may_differ_in_value():
    plain = linear("fc1", D, 8) | linear("fc2", 3, D)
    source = tree(plain, {f"module.{k}": s for k, s in plain.items()})
    alignment = align(source, tree(plain))
    assert claims(alignment) == {}
    assert alignment.verdict == "undecided"


def test_two_wrapper_spellings_of_one_tensor_are_one_choice():
    plain = linear("fc", D, 8)
    ties = tuple((k, f"module.{k}") for k in plain)
    source = tree(plain, {f"module.{k}": s for k, s in plain.items()}, ties=ties)
    assert set(claimed(source, tree(plain))) == set(plain)


# --- what does not fit


def test_every_width_doubled_is_another_variant():
    def net(d: int) -> ParamTree:
        return tree(
            *(linear(f"layers.{i}.fc1", 4 * d, d) | linear(f"layers.{i}.fc2", d, 4 * d) for i in range(4))
        )

    alignment = align(net(32), net(16))
    assert claims(alignment) == {}
    assert alignment.verdict == "incompatible" and alignment.refusal


def test_a_head_for_other_classes_is_left_alone():
    source = tree(linear("fc1", D, 8), linear("head", 10, D))
    alignment = align(source, tree(linear("fc1", D, 8), linear("head", 7, D)))
    assert claims(alignment) == {"fc1.weight": "fc1.weight", "fc1.bias": "fc1.bias"}
    assert alignment.verdict == "undecided"


def test_a_larger_vocabulary_is_not_cut_in_silence():
    found = claimed(
        tree({"wte.weight": (96, D)}, norm("ln_f", D)), tree({"wte.weight": (65, D)}, norm("ln_f", D))
    )
    assert "wte.weight" not in found


def test_an_empty_checkpoint_fills_nothing():
    alignment = align(tree(), tree(linear("fc", D, 8)))
    assert claims(alignment) == {}
    assert alignment.verdict in ("undecided", "incompatible")


def test_an_unrelated_network_fills_nothing():
    source = tree(*(conv(f"features.{i}", 8 * (i + 1), 8 * i or 3) for i in range(4)))
    target = tree(
        *(linear(f"layers.{i}.fc", 40 + i, 40) | norm(f"layers.{i}.norm", 40 + i) for i in range(4))
    )
    alignment = align(source, target)
    assert claims(alignment) == {}
    assert alignment.verdict in ("undecided", "incompatible")


# --- path segments, never substrings


def test_a_prefix_is_a_segment_not_a_substring():
    inner = {"net.mlp_module.layer0.conv.weight": (D, 8, 1), "net.submodule.fc.weight": (3, D)}
    source = tree({f"module.{k}": s for k, s in inner.items()})
    assert claimed(source, tree(inner)) == {k: f"module.{k}" for k in inner}


def test_layer_1_is_not_layer_10():
    source = tree(*(linear(f"layers.{i}.fc", D, D) for i in range(12)))
    found = claimed(source, tree(*(linear(f"model.layers.{i}.fc", D, D) for i in range(12))))
    assert found == {f"model.{k}": k for k in source.specs}


def test_a_missing_middle_block_is_named_and_not_filled_from_the_next():
    whole = [linear(f"layers.{i}.fc", D, D) | norm(f"layers.{i}.norm", D) for i in range(4)]
    alignment = align(tree(*whole[:2], *whole[3:]), tree(*whole))
    assert not any(k.startswith("layers.2.") for k in claims(alignment))
    assert all(k == s for k, s in claims(alignment).items())
    assert alignment.verdict in ("undecided", "incompatible")


# --- ties


def test_a_tied_head_that_the_file_leaves_out_follows_its_mate():
    embed, head = {"embed.weight": (32, D)}, {"lm_head.weight": (32, D)}
    tied = tree(embed, norm("norm", D), head, ties=(("embed.weight", "lm_head.weight"),))
    alignment = align(tree(embed, norm("norm", D)), tied)
    assert claims(alignment).get("lm_head.weight", "embed.weight") == "embed.weight"
    assert alignment.matches["lm_head.weight"].status in ("safe", "kept")


def test_a_head_that_is_not_tied_is_not_filled_from_the_embedding():
    embed, head = {"embed.weight": (32, D)}, {"lm_head.weight": (32, D)}
    alignment = align(tree(embed, norm("norm", D)), tree(embed, norm("norm", D), head))
    assert "lm_head.weight" not in claims(alignment)
    assert alignment.verdict == "undecided"


def test_projections_without_names_are_not_told_apart():
    source = tree(attention("attn", "a", "b", "c", "d"))
    assert claimed(source, tree(attention("attn", "q_proj", "k_proj", "v_proj", "out_proj"))) == {}


def test_a_last_projection_alone_does_not_relate_two_networks():
    source = tree(
        *(conv(f"features.{i}", 8 * (i + 1), 8 * i or 3) for i in range(5)), linear("classifier.1", 10, D)
    )
    target = tree(
        *(attention(f"blocks.{i}.attn", "q", "k", "v", "o") for i in range(4)), linear("head", 10, D)
    )
    assert claimed(source, target) == {}


def test_parts_that_both_sides_have_are_copied_though_another_module_is_fused():
    def both(prefix: str) -> Shapes:
        fused = linear("visual.blocks.0.attn.qkv", 3 * D, D) | linear("visual.blocks.0.attn.proj", D, D)
        attn = f"{prefix}.layers.0.self_attn"
        apart = linear(f"{attn}.q_proj", D, D) | linear(f"{attn}.o_proj", D, D)
        apart |= linear(f"{attn}.k_proj", D // 2, D) | linear(f"{attn}.v_proj", D // 2, D)
        return fused | apart | norm(f"{prefix}.norm", D)

    source, target = both("model"), both("model.language_model")
    plain = {k: k.replace("model.language_model", "model") for k in target}
    assert claimed(tree(source), tree(target)) == plain


# --- numbers and shapes that agree by chance


def test_top_down_lists_that_only_numbers_have_in_common_may_count_either_way():
    source = tree(
        *(conv(f"neck.fusion_stage.layers.{i}.projection", D, D) for i in range(4)), linear("head", D, 3)
    )
    target = tree(*(conv(f"scratch.stages.{i}.out_conv", D, D) for i in range(4)), linear("head", D, 3))
    assert claimed(source, target).keys() == {"head.weight", "head.bias"}


def test_a_module_is_not_given_what_is_called_like_another_one_of_the_model():
    case = read_case(FIXTURES / "cases_more" / "b" / "T4_hf_v4_to_v5_pi0forconditionalgeneration.json.gz")
    kept = {k: s for k, s in case.source.specs.items() if not k.startswith("state_proj.")}
    source = ParamTree({f"learner.net.{k}": s for k, s in kept.items()})
    found = claimed(source, case.target)
    assert "embed_action_time.state_proj.weight" not in found
    assert len(found) > 60


def test_a_derived_buffer_goes_with_the_blocks_that_were_renumbered():
    case = read_case(FIXTURES / "cases_extra" / "T4_hf_v4_to_v5_maskformer.json.gz")
    mutated = mutate(case, "renumber", 851541)
    assert mutated is not None
    assert claimed(mutated.source, mutated.target) == {t: f.sources[0] for t, f in mutated.truth.items()}
