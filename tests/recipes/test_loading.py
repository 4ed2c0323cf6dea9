"""From a file on disk into a live model: head counts come from where each library keeps them."""

import json

import pytest
import torch

import ckptdoctor
from ckptdoctor.errors import CkptDoctorError
from tests.recipes.case import IDS
from tests.recipes.cases import CASES
from tests.recipes.models.parts import Used


class Blank(torch.nn.Module):
    """A model whose own attributes say nothing of its heads."""

    def __init__(self, model):
        super().__init__()
        self.model, self.lm_head = model.model, model.lm_head
        for module in self.modules():
            for name in ("config", "head_dim", "num_heads", "num_key_value_groups"):
                vars(module).pop(name, None)


def saved(case, folder):
    """A checkpoint of side a with other values than the model's; the same values as float64."""
    torch.manual_seed(0)
    a = {k: torch.randn_like(v) * 0.3 for k, v in case.convert("b", case.state()).items()}
    torch.save(a, folder / "checkpoint.pth")
    return a, folder / "checkpoint.pth"


def case_of(recipe):
    return next(case for case in CASES if case.recipe == recipe)


@pytest.mark.parametrize(
    "recipe", ["llama-meta", "litgpt-llama-grouped", "internlm2-llama", "litgpt-gpt-neox", "torchtune-llama"]
)
def test_a_live_model_of_transformers_says_what_its_config_says(recipe, tmp_path):
    case = case_of(recipe)
    a, path = saved(case, tmp_path)
    model = case.b.model
    ckptdoctor.auto_load(model, path)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, case.a(Used(a)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("params.json", {"n_heads": 6, "n_kv_heads": 2, "dim": 48}),
        ("config.json", {"num_attention_heads": 6, "num_key_value_heads": 2, "model_type": "llama"}),
    ],
)
def test_a_configuration_beside_the_checkpoint_gives_the_head_counts(name, config, tmp_path):
    case = case_of("llama-meta")
    a, path = saved(case, tmp_path)
    model = Blank(case.b.model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CkptDoctorError, match="num_attention_heads"):
        ckptdoctor.auto_load(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    (tmp_path / name).write_text(json.dumps(config))
    ckptdoctor.auto_load(model, path)
    due = case.convert("a", a)
    assert all(torch.equal(v, due[k]) for k, v in model.state_dict().items())


def test_two_configurations_that_disagree_are_a_question(tmp_path):
    case = case_of("llama-meta")
    _, path = saved(case, tmp_path)
    (tmp_path / "params.json").write_text(json.dumps({"n_heads": 3, "n_kv_heads": 1}))
    found = ckptdoctor.diagnose(case.b.model, path)
    assert found.verdict == "undecided"
    (question,) = [q for q in found.alignment.questions if q.kind == "recipe"]
    assert "num_attention_heads is 3 by params.json" in " ".join(question.notes)
    ckptdoctor.auto_load(case.b.model, path, decisions=["value=num_attention_heads=6", "value=n_kv_heads=2"])


def test_head_counts_that_do_not_divide_are_never_used(tmp_path):
    case = case_of("llama-meta")
    _, path = saved(case, tmp_path)
    wrong = ["value=num_attention_heads=5", "value=num_key_value_heads=2"]
    found = ckptdoctor.diagnose(Blank(case.b.model), path, decisions=wrong)
    assert found.verdict == "undecided"
    assert not [m for m in found.alignment.matches.values() if m.status == "safe" and "q_proj" in m.target]
