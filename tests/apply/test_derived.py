"""Buffers that the model computes: where the checkpoint has them, too, other values are refused."""

import pytest
import torch
from torch import nn

import ckptdoctor as ckd
from ckptdoctor.errors import VerifyError


def inv_freq(theta, size=8):
    return 1.0 / theta ** (torch.arange(0, size, 2).float() / size)


class Buffer(nn.Module):
    """Holds one buffer, persistent or not."""

    def __init__(self, name, value, persistent=False):
        super().__init__()
        self.register_buffer(name, value, persistent=persistent)


class Layer(nn.Module):
    def __init__(self, **children):
        super().__init__()
        self.proj = nn.Linear(4, 3)
        for name, child in children.items():
            setattr(self, name, child)


class Net(nn.Module):
    """Two layers, each with what `make` gives it, and more beside them."""

    def __init__(self, make=dict, **children):
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.layers = nn.ModuleList(Layer(**make()) for _ in range(2))
        for name, child in children.items():
            setattr(self, name, child)


def rotary(theta, dtype=torch.float32):
    return lambda: {"rotary_emb": Buffer("inv_freq", inv_freq(theta).to(dtype), persistent=True)}


def saved(tmp_path, model, prefix=""):
    path = tmp_path / "trained.pth"
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, path)
    return path


def quiet(make):
    """The same children, whose buffers are not in the state dict."""

    def made():
        children = make()
        for child in children.values():
            child._non_persistent_buffers_set.update(child._buffers)
        return children

    return made


def load(model, path, **more):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        return ckd.auto_load(model, path, **more)
    except VerifyError:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), (
            "rolled back"
        )
        raise


@pytest.mark.parametrize("prefix", ["", "module.", "net.backbone."])
def test_another_rope_theta_is_refused_with_both_values_and_the_flag(tmp_path, prefix):
    path = saved(tmp_path, Net(rotary(1e4)), prefix)
    with pytest.raises(VerifyError) as seen:
        load(Net(quiet(rotary(5e5))), path)
    words = str(seen.value)
    assert f"`{prefix}layers.0.rotary_emb.inv_freq` [4]: 3 of 4 differ, at [3]" in words
    assert "0.001 in the checkpoint, 5.3183e-05 in the model's `layers.0.rotary_emb.inv_freq`" in words
    assert "another rope_theta" in words and "--accept derived" in words and "layers.1" in words
    receipt = load(Net(quiet(rotary(5e5))), path, decisions=["accept=derived"])
    assert receipt.loaded == 6 and any("accepted: `" in note and "differ" in note for note in receipt.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_values_load_and_are_counted_also_when_they_were_saved_in_half(tmp_path, dtype):
    receipt = load(Net(quiet(rotary(1e4))), saved(tmp_path, Net(rotary(1e4, dtype))))
    assert receipt.notes == ("2 derived buffers of the file as the model computes",)
    with pytest.raises(VerifyError):
        load(Net(quiet(rotary(2e4))), saved(tmp_path, Net(rotary(1e4, dtype))))


def test_one_table_for_the_whole_model_is_compared_with_the_copies_of_the_layers(tmp_path):
    path = saved(tmp_path, Net(rotary(1e4)))
    assert load(Net(rotary_emb=Buffer("inv_freq", inv_freq(1e4))), path).notes
    with pytest.raises(VerifyError, match=r"`rotary_emb\.inv_freq`: another rope_theta"):
        load(Net(rotary_emb=Buffer("inv_freq", inv_freq(1e6))), path)
    two = {"rotary_emb": Buffer("inv_freq", inv_freq(1e6)), "rotary_local": Buffer("inv_freq", inv_freq(1e4))}
    assert load(Net(**two), path).loaded == 6, "one of two tables is the one"


def test_renamed_layers_are_followed_to_their_buffer(tmp_path):
    trained, path = Net(rotary(1e4)), tmp_path / "renamed.pth"
    state = {k.replace("layers.", "blocks."): v for k, v in trained.state_dict().items()}
    torch.save(state, path)
    with pytest.raises(
        VerifyError, match=r"`blocks\.0\.rotary_emb\.inv_freq`.*`layers\.0\.rotary_emb\.inv_freq`"
    ):
        load(Net(quiet(rotary(5e5))), path)
    assert load(Net(quiet(rotary(1e4))), path).notes


def held(name, value):
    return lambda: {"attn": Buffer(name, value, persistent=True)}


CAUSAL = torch.tril(torch.ones(6, 6)).view(1, 1, 6, 6)
SAME = {
    "a longer mask of another dtype": ("bias", CAUSAL.bool(), torch.tril(torch.ones(9, 9)).view(1, 1, 9, 9)),
    "more positions": ("position_ids", torch.arange(6)[None], torch.arange(8)[None]),
    "a mask for another image size": ("attn_mask", torch.zeros(2, 4, 4), torch.full((8, 4, 4), -100.0)),
    "another very negative number": ("masked_bias", torch.tensor(-1e4), torch.tensor(-1e9)),
    "waves near zero": ("cos_cached", torch.cos(torch.arange(5.0)).half(), torch.cos(torch.arange(9.0))),
    "minus infinity": ("attn_mask", torch.full((2, 2), -torch.inf), torch.full((2, 2), -torch.inf)),
}
OTHER = {
    "positions from 2": ("position_ids", torch.arange(2, 8)[None], torch.arange(6)[None]),
    "another order": (
        "relative_position_index",
        torch.arange(16).view(4, 4),
        torch.arange(16).view(4, 4).t(),
    ),
    "waves": ("cos_cached", torch.cos(torch.arange(5.0)), torch.cos(torch.arange(9.0) / 2)),
    "a mask of what comes later": ("bias", CAUSAL, CAUSAL.transpose(2, 3)),
    "not a number": ("inv_freq", torch.full((4,), torch.nan), torch.ones(4)),
}


@pytest.mark.parametrize("case", SAME)
def test_what_means_the_same_is_no_difference(case, tmp_path):
    name, theirs, mine = SAME[case]
    assert load(Net(quiet(held(name, mine))), saved(tmp_path, Net(held(name, theirs)))).loaded == 6


@pytest.mark.parametrize("case", OTHER)
def test_what_means_something_else_is_refused(case, tmp_path):
    name, theirs, mine = OTHER[case]
    with pytest.raises(
        VerifyError, match=rf"(?s)`layers\.0\.attn\.{name}`.*in the checkpoint.*accept derived"
    ):
        load(Net(quiet(held(name, mine))), saved(tmp_path, Net(held(name, theirs))))


def test_a_buffer_that_the_model_does_not_have_is_dropped_as_before(tmp_path):
    receipt = load(Net(), saved(tmp_path, Net(rotary(1e4))))
    assert receipt.loaded == 6 and len(receipt.unused) == 2 and not receipt.notes


def test_a_file_cannot_ask_the_model_and_says_so(tmp_path):
    path = saved(tmp_path, Net(rotary(1e4)))
    model = Net(quiet(rotary(5e5)))
    plan = ckd.plan(model, path)
    receipt = ckd.apply(plan, path, model=model, out=tmp_path / "out.pth")
    assert "`layers.0.rotary_emb.inv_freq`, `layers.1.rotary_emb.inv_freq` of the checkpoint were not" in str(
        receipt
    )
    plain = saved(tmp_path, Net())
    assert ckd.apply(ckd.plan(model, plain), plain, model=model, out=tmp_path / "b.pth").notes == ()
