"""Loading into every kind of live model, and leaving it untouched whenever anything fails."""

import copy

import pytest
import torch
from torch import nn

from ckptdoctor.errors import ApplyError, ReadError, VerifyError
from ckptdoctor.loading import apply_to_model
from ckptdoctor.targets.module import snapshot
from tests.apply.fakes import Plan, Source, identity, keep, load, picture, same_picture, tie


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


class WithExtra(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.scale = "fp8"

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]


class Hooked(nn.Module):
    """Stores its weight transposed in its state dict, in both directions."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = self.weight.detach().t()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[prefix + "weight"] = state_dict[prefix + "weight"].t()
        super()._load_from_state_dict(state_dict, prefix, *args)


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


def random_state(model):
    state = {}
    for key, t in model.state_dict().items():
        if isinstance(t, torch.Tensor):
            rand = torch.randn(t.shape) if t.is_floating_point() else torch.randint(1, 9, t.shape)
            state[key] = rand.to(t.dtype)
    return state


def run(plan, source, model, **kwargs):
    reader = source if callable(source) else Source(source)
    return apply_to_model(plan, reader, model, snapshot(model), **kwargs)


KINDS = {
    "plain": small,
    "data parallel": lambda: nn.DataParallel(small()),
    "compiled": lambda: torch.compile(small()),
    "half": lambda: small().half(),
    "bfloat16": lambda: small().bfloat16(),
    "double": lambda: small().double(),
    "channels last": lambda: small().to(memory_format=torch.channels_last),
    "frozen": lambda: small().requires_grad_(False),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "extra state": WithExtra,
    "hooks of its own": Hooked,
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_model_is_filled_in_place(make):
    model = make()
    state = random_state(model)
    before = picture(model)
    optimizer = torch.optim.SGD(list(model.parameters()), lr=1.0)
    receipt = run(identity(model), state, model)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in state.items())
    now = picture(model)
    assert [v[:-1] for v in before.values()] == [v[:-1] for v in now.values()], (
        "objects, dtypes, strides stay"
    )
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert receipt.loaded == len(state) and str(receipt).count("\n") < 4


@pytest.mark.parametrize(
    "error", [OSError("gone"), KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("make", [small, Tied, lambda: small().half()], ids=["plain", "tied", "half"])
def test_a_failure_at_any_read_leaves_the_model_bit_identical(make, error):
    model = make()
    plan, state = identity(model), random_state(model)
    state.update({"head.weight": state["embed.weight"]} if "embed.weight" in state else {})
    reads = Source(state)
    run(plan, reads, copy.deepcopy(model))
    before = picture(model)
    for n in range(reads.reads):
        with pytest.raises((ApplyError, KeyboardInterrupt)):
            run(plan, Source(state, fail_at=n, error=error), model)
        assert same_picture(before, picture(model))


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit()], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("meta", [False, True])
def test_a_failure_at_any_write_leaves_the_model_untouched_or_complete(monkeypatch, error, meta):
    """Plain tensors are written behind the point of no return: there the write is done again."""
    plan, state = identity(small()), random_state(small())
    original = torch.Tensor.copy_
    ended = set()
    for n in range(2 * len(state)):
        with torch.device("meta" if meta else "cpu"):
            model = small()
        before = picture(model)
        written = []

        def failing(self, *args, n=n, model=model, written=written, **kwargs):
            tensors = [t for t in (*model.parameters(), *model.buffers()) if not t.is_meta]
            if any(self.data_ptr() == t.data_ptr() for t in tensors):
                written.append(self)
                if len(written) == n + 1:
                    raise error
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, "copy_", failing)
        try:
            run(plan, state, model)
            raised = False
        except (ApplyError, KeyboardInterrupt, SystemExit):
            raised = True
        monkeypatch.setattr(torch.Tensor, "copy_", original)
        if raised and same_picture(before, picture(model)):
            ended.add("untouched")
            continue
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        ended.add("complete" if len(written) > n else "no failure")
        assert not raised or not isinstance(error, Exception)
    assert ended == {"untouched", "no failure"} | (set() if meta else {"complete"})


def test_a_file_that_is_edited_in_place_meanwhile_is_named(tmp_path):
    """Before the first write that undoes all; behind it the only thing left is to say so."""

    class Edited(Source):
        def __init__(self, state, asked):
            super().__init__(state)
            self.left = asked

        def unchanged(self):
            self.left -= 1
            if not self.left:
                raise ReadError("a.pth: was written since it was inspected")

    model = nn.Linear(2, 2)
    before = picture(model)
    with pytest.raises(ReadError, match="was written"):
        run(identity(model), Edited(random_state(model), 1), model)
    assert same_picture(before, picture(model))
    with pytest.raises(VerifyError, match=r"build it again: a\.pth: was written"):
        run(identity(model), Edited(random_state(model), 2), model)


def test_a_failed_verification_rolls_back():
    model = small()
    before = picture(model)
    state = random_state(model)
    other = {**state, "4.weight": state["4.weight"] + 1}
    with pytest.raises(VerifyError, match=r"`4.weight` is not `copy` of `4.weight`: 8 of 8 values differ"):
        run(identity(model), Source(state), model, fresh=lambda: Source(other))
    assert same_picture(before, picture(model))


def test_meta_models_become_real_and_keep_objects_ties_and_optimizers():
    with torch.device("meta"):
        model = Tied()
    model.head.weight.tag = "mine"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameter = model.head.weight
    state = random_state(Tied())
    plan = identity(model, **{"head.weight": tie("head.weight", "embed.weight")})
    receipt = run(plan, state, model)
    assert model.head.weight is model.embed.weight is parameter
    assert parameter.device.type == "cpu" and parameter.tag == "mine" and parameter.requires_grad
    assert torch.equal(parameter, state["embed.weight"]) and receipt.tied == 1
    assert any(p is parameter for g in optimizer.param_groups for p in g["params"])
    assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
    with torch.no_grad():
        parameter.add_(1)
    assert not torch.equal(parameter, state["embed.weight"]), "the model must not write to the file's memory"


def test_meta_tensor_that_torch_cannot_swap_is_replaced_everywhere():
    import weakref

    with torch.device("meta"):
        model = Tied()
    watch = weakref.ref(model.embed.weight)
    state = random_state(Tied())
    run(identity(model, **{"head.weight": tie("head.weight", "embed.weight")}), state, model)
    assert model.head.weight is model.embed.weight and not model.head.weight.is_meta
    assert watch is not None


def test_a_meta_model_with_non_persistent_buffers_is_refused_with_a_way_out():
    class Rotary(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("inv_freq", torch.ones(3), persistent=False)

    with torch.device("meta"):
        model = Rotary()
    before = picture(model)
    with pytest.raises(ApplyError, match=r"inv_freq.*Build the model on the CPU"):
        run(identity(model), {}, model)
    assert same_picture(before, picture(model))


def test_kept_counters_on_meta_start_at_zero_and_other_kept_values_are_refused():
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    plan = identity(model, num_batches_tracked=keep("num_batches_tracked"))
    run(plan, random_state(nn.BatchNorm1d(3)), model)
    assert model.num_batches_tracked.item() == 0
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    with pytest.raises(ApplyError, match="no initial values"):
        run(identity(model, weight=keep("weight", "reinit")), random_state(nn.BatchNorm1d(3)), model)
    assert model.bias.is_meta


def test_kept_and_reinitialised_values_stay_and_are_counted():
    model = small()
    head, counter = model[4].weight.detach().clone(), model[1].num_batches_tracked
    plan = identity(
        model,
        **{"4.weight": keep("4.weight", "reinit"), "1.num_batches_tracked": keep("1.num_batches_tracked")},
    )
    receipt = run(plan, random_state(model), model)
    assert torch.equal(model[4].weight, head) and model[1].num_batches_tracked is counter
    assert (receipt.kept, receipt.reinitialised) == (1, 1)


def test_tied_weights_with_two_different_copies_are_refused():
    model = Tied()
    state = random_state(model)
    before = picture(model)
    with pytest.raises(ApplyError, match=r"ties `embed.weight` and `head.weight`"):
        run(identity(model), state, model)
    assert same_picture(before, picture(model))
    state["head.weight"] = state["embed.weight"].clone()
    run(identity(model), state, model)
    assert model.head.weight is model.embed.weight


class Hook(nn.Linear):
    """Loads as ever, but by code of its own."""

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)


class TiedHook(nn.Module):
    def __init__(self, first):
        super().__init__()
        parts = {"embed": nn.Embedding(7, 4), "head": Hook(4, 7, bias=False)}
        for name in ("head", "embed") if first == "head" else ("embed", "head"):
            self.add_module(name, parts[name])
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("first", ["head", "embed"])
@pytest.mark.parametrize("meta", [False, True])
def test_a_tie_between_a_plain_module_and_one_with_code_of_its_own(first, meta):
    with torch.device("meta" if meta else "cpu"):
        model = TiedHook(first)
    value = torch.randn(7, 4)
    other = "embed" if first == "head" else "head"
    plan = identity(model, **{f"{other}.weight": tie(f"{other}.weight", f"{first}.weight")})
    run(plan, {f"{first}.weight": value}, model)
    assert model.head.weight is model.embed.weight and torch.equal(model.embed.weight, value)
    before = picture(model)
    with pytest.raises(VerifyError):
        run(plan, {f"{first}.weight": value + 1}, model, fresh=lambda: Source({f"{first}.weight": value}))
    assert same_picture(before, picture(model))


def test_a_reader_of_the_models_own_tensors_may_swap_them():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    old = [m.weight.detach().clone() for m in model]
    plan = Plan({"0.weight": load("0.weight", "1.weight"), "1.weight": load("1.weight", "0.weight")})
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    run(plan, model.state_dict().__getitem__, model, fresh=lambda: kept.__getitem__)
    assert torch.equal(model[0].weight, old[1]) and torch.equal(model[1].weight, old[0])


def test_only_what_code_of_the_model_may_write_to_is_kept_aside():
    from ckptdoctor.apply.direct import places_of

    def split(model):
        found = places_of(model, list(model.modules()), dict(model.state_dict(keep_vars=True)))
        return sorted(found.own), sorted(found.direct)

    assert split(small()) == (["1"], ["0.bias", "0.weight", "4.bias", "4.weight"])
    assert split(Hooked()) == ([""], [])
    shared = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)])
    shared[1].weight.data = shared[0].weight.data.t()
    assert split(shared) == (["0", "1"], ["2.bias", "2.weight"])
    expanded = nn.ModuleList([nn.Linear(2, 2)])
    expanded[0].weight = nn.Parameter(torch.ones(1, 2).expand(2, 2))
    assert split(expanded) == (["0"], [])
    with torch.inference_mode():
        frozen = nn.Linear(2, 2)
    assert split(frozen) == ([""], [])


def test_ops_are_run_and_the_model_dtype_wins():
    model = nn.Linear(3, 6).half()
    q, k = torch.randn(3, 3), torch.randn(3, 3)
    plan = Plan(
        {"weight": load("weight", "q", "k", ops=["each:transpose(0,1)", "concat(0)"]), "bias": load("bias")}
    )
    receipt = run(plan, {"q": q, "k": k, "bias": torch.zeros(6)}, model)
    assert torch.equal(model.weight, torch.cat([q.t(), k.t()]).half()) and model.weight.dtype == torch.float16
    assert receipt.casts == {"rounding": 1, "lossless": 1}
    assert receipt.to_dict()["entries"][0]["sources"] == ["q", "k"]


def test_extra_state_is_kept():
    model = WithExtra()
    model.scale = "bf16"
    run(identity(model), random_state(model), model)
    assert model.scale == "bf16"


def test_requires_grad_and_grads_stay():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    model.weight.grad = torch.ones(2, 2)
    run(identity(model), random_state(model), model)
    assert model.weight.requires_grad and not model.bias.requires_grad
    assert torch.equal(model.weight.grad, torch.ones(2, 2))


def test_a_plan_for_another_model_is_refused_before_anything_is_read():
    model, source = nn.Linear(2, 2), Source({})
    with pytest.raises(ApplyError, match=r"no step fills `bias`; the model has no `scale`"):
        run(Plan({"weight": load("weight"), "scale": load("scale")}), source, model)
    assert source.reads == 0


def test_a_shape_that_does_not_fit_names_key_and_shapes():
    model = nn.Linear(2, 2)
    with pytest.raises(ApplyError, match=r"`weight`: the plan makes \[3,2\], the model has \[2,2\]"):
        run(identity(model), {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, model)


def test_a_hook_that_changes_values_is_found():
    class Meddler(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            state_dict[prefix + "bias"] = state_dict[prefix + "bias"] + 1
            super()._load_from_state_dict(state_dict, prefix, *args)

    model = Meddler(2, 2)
    before = picture(model)
    with pytest.raises(VerifyError, match="`bias` is not"):
        run(identity(model), random_state(model), model)
    assert same_picture(before, picture(model))


def test_a_load_state_dict_that_does_nothing_is_found():
    class Lazy(nn.Linear):
        def load_state_dict(self, state_dict, strict=True, assign=False):
            return None

    model = Lazy(2, 2)
    with pytest.raises(VerifyError, match="values differ"):
        run(identity(model), random_state(model), model)


def test_a_load_that_unties_is_found_and_undone():
    class Assigning(Tied):
        def load_state_dict(self, state_dict, strict=True, assign=False):
            return super().load_state_dict(dict(state_dict), strict=strict, assign=True)

    model = Assigning()
    state = random_state(model)
    state["head.weight"] = state["embed.weight"]
    before = picture(model)
    with pytest.raises(VerifyError, match="were one tensor and are not any more"):
        run(identity(model), state, model)
    assert same_picture(before, picture(model)) and model.head.weight is model.embed.weight


def test_device_only_says_where_meta_goes():
    model = nn.Linear(2, 2)
    run(identity(model), random_state(model), model, device="cpu")
    with pytest.raises(ApplyError, match=r"Move it first: model.to\('cuda:1'\)"):
        run(identity(model), random_state(model), model, device="cuda:1")


def test_the_writers_module_version_reaches_the_modules_own_hook():
    seen = []

    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            seen.append(local_metadata.get("version"))
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    model = nn.Sequential(Versioned(2, 2))
    state = {f"module.{k}": v for k, v in random_state(model).items()}
    plan = Plan({k: load(k, f"module.{k}") for k in model.state_dict()})
    run(plan, state, model, source_versions={"module.0": 2})
    run(plan, state, model)
    assert seen == [2, 3]


def test_a_quantized_source_is_refused():
    model = nn.Linear(2, 2)
    q = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    with pytest.raises(ApplyError, match="quantized"):
        run(identity(model), {"weight": q, "bias": torch.ones(2)}, model)


def test_progress_is_told_per_tensor():
    model, seen = nn.Linear(2, 2), []
    run(identity(model), random_state(model), model, on_tensor=seen.append)
    assert seen == ["weight", "bias"]
