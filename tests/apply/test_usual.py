"""The usual load, which looks at tensors by columns: the same as one tensor at a time, whatever happens."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn

import ckptdoctor
from ckptdoctor.errors import ApplyError, CkptDoctorError, VerifyError
from ckptdoctor.loading import apply_to_model
from ckptdoctor.targets.module import tree_of
from ckptdoctor.targets.survey import survey
from tests.apply.fakes import Plan, Source, identity, load, picture, same_picture, tie
from tests.apply.test_apply_model import KINDS, Hook, Tied, random_state, small
from tests.apply.test_every_line import endings


class Steady(Source):
    """Gives new tensors, as a reader of a file does, which may be kept."""

    steady = True

    def __call__(self, key):
        return super().__call__(key).clone()

    def lends(self, key):
        return True


def run(plan, reader, model, **how):
    found = survey(model)
    return apply_to_model(plan, reader, model, tree_of(found), found=found, **how)


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)))


def tied():
    model = nn.ModuleDict({"a": nn.Embedding(3, 2), "b": nn.Linear(2, 3, bias=False), "c": nn.Linear(2, 2)})
    model.b.weight = model.a.weight
    return model


def plan_for(model):
    ties = {"b.weight": tie("b.weight", "a.weight")} if isinstance(model, nn.ModuleDict) else {}
    return identity(model, **ties)


def test_only_these_models_are_loaded_without_code_of_theirs():
    assert survey(plain()).loads and survey(tied()).loads and not survey(small()).loads


@pytest.mark.parametrize("make", [*KINDS.values(), plain, Tied], ids=[*KINDS, "usual", "tied"])
@pytest.mark.parametrize("verify", [False, True])
def test_each_by_itself_and_all_by_columns_give_the_same(make, verify):
    model, state = make(), random_state(make())
    if isinstance(model, Tied):
        state["head.weight"] = state["embed.weight"]
    receipts = []
    for reader in (Steady(state), Source(state)):
        receipts.append(run(identity(model), reader, model, verify=verify))
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if k in state)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    assert receipts[0] == receipts[1]


@pytest.mark.parametrize("make", [plain, tied])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("verify", [False, True])
def test_nothing_half_done_is_ever_left(make, device, verify):
    state = random_state(make())
    state |= {"b.weight": state["a.weight"]} if "a.weight" in state else {}

    def begin():
        with torch.device(device):
            model = make()
        return model, partial(run, plan_for(model), Steady(state), model, verify=verify)

    ended = endings(begin, state)
    assert ended.count("untouched") > 60, "the bombs went off"
    assert ended == sorted(ended, reverse=True), "once it is committed it stays"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("verify", [False, True])
def test_a_model_that_was_changed_since_it_was_walked_is_refused(device, verify):
    with torch.device(device):
        model = plain()
    state, found = random_state(plain()), survey(model)
    tree, old = tree_of(found), model[0].weight
    model[0].weight = nn.Parameter(torch.zeros(old.shape))
    before = picture(model)
    with pytest.raises(VerifyError, match=r"`0.weight` became other tensors"):
        apply_to_model(identity(model), Steady(state), model, tree, found=found, verify=verify)
    assert same_picture(before, picture(model)) and old.is_meta == (device == "meta")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(3), r"`2.0.bias`: the plan makes \[3\], the model has \[2\]"),
        (torch.empty(2, device="meta"), "saved on the meta device"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (None, r"`2.0.bias` from `2.0.bias` could not be made"),
    ],
)
def test_the_key_is_named_as_ever(device, value, words):
    with torch.device(device):
        model = plain()
    before = picture(model)
    with pytest.raises(ApplyError, match=words):
        run(identity(model), Steady({**random_state(plain()), "2.0.bias": value}), model)
    assert same_picture(before, picture(model))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_values_than_plain_ones_are_made_plain(device):
    state = random_state(plain())
    odd = {"2.0.bias": state["2.0.bias"].double(), "2.1.bias": state["2.1.bias"].to_sparse()}
    odd["2.1.weight"] = nn.Parameter(state["2.1.weight"])
    with torch.device(device):
        model = plain()
    run(identity(model), Steady({**state, **odd}), model)
    assert all(torch.equal(v, state[k]) and v.layout == torch.strided for k, v in model.state_dict().items())
    assert all(p.is_leaf and p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_what_was_on_meta_is_a_tensor_like_any_other():
    with torch.device("meta"):
        model = plain()
    model[0].weight.tag = "mine"
    model[0].bias.requires_grad_(False)
    state, calls = random_state(plain()), []
    model[2][0].weight.register_hook(calls.append)
    run(identity(model), Steady(state), model)
    for parameter in model.parameters():
        assert type(parameter) is nn.Parameter and parameter.is_leaf and not parameter._is_view()
        parameter.detach_().set_(torch.zeros(3))  # what torch refuses for tensors made by .detach()
    assert model[0].weight.tag == "mine" and not model[0].bias.requires_grad


def test_a_tie_to_a_module_with_code_of_its_own_on_meta():
    with torch.device("meta"):
        model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": Hook(4, 7, bias=False)})
    model.head.weight = model.embed.weight
    value = torch.randn(7, 4)
    plan = Plan({"embed.weight": load("embed.weight"), "head.weight": tie("head.weight", "embed.weight")})
    run(plan, Steady({"embed.weight": value}), model)
    assert model.head.weight is model.embed.weight and torch.equal(model.embed.weight, value)


def test_what_a_diagnosis_returns_does_not_hold_the_model(tmp_path):
    model = plain()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    found = ckptdoctor.diagnose(model, tmp_path / "a.pth")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and found.ok


def test_errors_of_a_reader_are_those_of_the_key():
    class Broken(Steady):
        def __call__(self, key):
            if key == "2.1.bias":
                raise CkptDoctorError("not now")
            return super().__call__(key)

    model = plain()
    before = picture(model)
    with pytest.raises(CkptDoctorError, match=r"`2.1.bias`: not now"):
        run(identity(model), Broken(random_state(model)), model)
    assert same_picture(before, picture(model))
