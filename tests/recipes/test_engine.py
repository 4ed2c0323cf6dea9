"""The engine finds each recipe by names alone, and asks where a value is not known."""

import pytest
import torch

from ckptdoctor.align import align
from ckptdoctor.decisions import parse_decisions
from ckptdoctor.ops import parse_chain
from ckptdoctor.trees import ParamTree, TensorSpec
from tests.recipes.applier import Unknown
from tests.recipes.cases import CASES

BOTH = [(case, side) for case in CASES for side in "ab"]
IDS = [f"{case} from {side}" for case, side in BOTH]


def tree(state):
    return ParamTree({k: TensorSpec(tuple(v.shape), "float32", "param") for k, v in state.items()})


def crossing(case, side):
    """What the checkpoint holds, and what the recipe makes of it."""
    torch.manual_seed(0)
    b = case.state()
    ours = b if side == "b" else case.convert("b", b)
    source = {k: torch.randn(v.shape) for k, v in ours.items()}
    return source, case.convert(side, source)


@pytest.mark.parametrize(("case", "side"), BOTH, ids=IDS)
def test_known_values_give_exactly_the_recipe(case, side):
    source, due = crossing(case, side)
    decisions = parse_decisions(f"value={k}={v}" for k, v in case.facts.items())
    found = align(tree(source), tree(due), decisions)
    assert not found.questions
    assert {k: m.status for k, m in found.matches.items()} == dict.fromkeys(due, "safe")
    for key, match in found.matches.items():
        made = parse_chain(list(match.ops)).run([source[s] for s in match.sources])
        assert torch.equal(made, due[key]), f"{key}: {match}"


def shapes_tell(case, side, state):
    """Whether the sizes of this side's tensors give every value that the recipe needs."""
    try:
        case.convert(side, state, facts={})
    except Unknown:
        return False
    return True


@pytest.mark.parametrize(("case", "side"), BOTH, ids=IDS)
def test_without_the_values_nothing_is_claimed_that_needs_them(case, side):
    source, due = crossing(case, side)
    found = align(tree(source), tree(due))
    for key, match in found.matches.items():
        if match.status == "safe":
            made = parse_chain(list(match.ops)).run([source[s] for s in match.sources])
            assert torch.equal(made, due[key]), f"{key}: {match}"
    if shapes_tell(case, side, source) or shapes_tell(case, "ab".replace(side, ""), due):
        assert not found.questions
        assert all(m.status == "safe" for m in found.matches.values())
    else:
        (question,) = found.questions
        assert question.kind == "recipe" and "must be known" in question.title
        asked = {flag.removeprefix("--value ").partition("=")[0] for flag, _ in question.flags}
        assert asked & set(case.facts)


def first(recipe):
    return next(case for case in CASES if case.recipe == recipe)


def safe(found):
    return {k for k, m in found.matches.items() if m.status == "safe"}


def test_gemma_has_llamas_names_on_both_sides_and_is_not_taken_for_it():
    """HookedTransformer keeps its norms as they are, transformers less one."""
    source, due = crossing(first("transformer-lens-llama"), "a")
    found = align(tree(source), tree(due), parse_decisions(["value=rms_norm_offset=1"]))
    assert found.questions
    assert not {"ln_final.w", "blocks.0.ln1.w", "blocks.0.ln2.w"} & safe(found)


def test_gpt_fast_and_internlm2_pack_differently_under_the_same_names():
    """A `wqkv` whose family cannot be told is never claimed."""
    case = first("gpt-fast-llama")
    source, due = crossing(case, "a")
    decisions = parse_decisions(f"value={k}={v}" for k, v in case.facts.items())
    del source["output.weight"], due["lm_head.weight"]
    found = align(tree(source), tree(due), decisions)
    assert found.questions
    assert not [k for k in safe(found) if "q_proj" in k or "k_proj" in k or "v_proj" in k]


def test_metas_names_with_norms_of_q_and_k_belong_to_others():
    """torchtitan's Qwen3: Meta's names, but rotary halves."""
    case = first("llama-meta")
    source, due = crossing(case, "a")
    for i in range(2):
        for part in "qk":
            source[f"layers.{i}.attention.{part}_norm.weight"] = torch.ones(8)
            due[f"model.layers.{i}.self_attn.{part}_norm.weight"] = torch.ones(8)
    decisions = parse_decisions(f"value={k}={v}" for k, v in case.facts.items())
    found = align(tree(source), tree(due), decisions)
    assert not [m for m in found.matches.values() if m.status == "safe" and any("rope" in op for op in m.ops)]
    assert found.questions


def test_nanogpts_layers_are_not_gpt2s_though_their_names_are():
    """nanoGPT's are Linear: [out, in] where GPT-2's Conv1D is [in, out]. All square but for the fused one."""
    case = first("transformer-lens-gpt2")
    source, due = crossing(case, "a")
    for i in range(2):
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            key = f"transformer.h.{i}.{name}.weight"
            source[key] = source[key].t() if name == "attn.c_attn" else torch.randn(48, 48)
        source[f"transformer.h.{i}.mlp.c_fc.bias"] = torch.randn(48)
        for key in ("mlp.W_in", "mlp.W_out"):
            due[f"blocks.{i}.{key}"] = torch.randn(48, 48)
        due[f"blocks.{i}.mlp.b_in"] = torch.randn(48)
    found = align(tree(source), tree(due))
    assert found.questions
    assert not [k for k in safe(found) if ".attn.W_" in k]


def test_chatglm_with_a_k_and_v_for_each_head_is_not_claimed():
    """Its code packs those head by head."""
    case = first("chatglm-glm")
    source, due = crossing(case, "a")
    for i in range(2):
        at = f"transformer.encoder.layers.{i}.self_attention.query_key_value"
        source |= {f"{at}.weight": torch.randn(144, 48), f"{at}.bias": torch.randn(144)}
        for part in "kv":
            at = f"model.layers.{i}.self_attn.{part}_proj"
            due |= {f"{at}.weight": torch.randn(48, 48), f"{at}.bias": torch.randn(48)}
    for ours, theirs in ((source, due), (due, source)):
        found = align(tree(ours), tree(theirs))
        assert found.questions
        assert not [k for k in safe(found) if "q_proj" in k or "query_key_value" in k]


def test_another_number_of_parts_of_codegen_is_asked():
    source, due = crossing(first("codegen-gptj"), "a")
    found = align(tree(source), tree(due), parse_decisions(["value=mp_num=8"]))
    assert [q.kind for q in found.questions] == ["recipe"]
    assert not [k for k in safe(found) if "q_proj" in k]
