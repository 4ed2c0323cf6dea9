"""Snapshots of live models: exactly what state_dict() says, on every kind of module."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from ckptdoctor.errors import TargetError
from ckptdoctor.targets import class_lines, snapshot
from ckptdoctor.trees import ParamTree

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.emb.weight


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(3))
        self.register_buffer("left_out", torch.zeros(2, 2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("absent", None)


class Extra(nn.Module):
    def __init__(self, state: object) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.state = state

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


class Renaming(nn.Module):
    """Has hooks and an own state_dict() that rename."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self._register_state_dict_hook(
            lambda m, state, prefix, meta: state.update(renamed=state.pop("fc.weight"))
        )


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"w": self.fc.weight.detach(), "b": self.fc.bias}


def assert_same(tree: ParamTree, model: nn.Module) -> None:
    state = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    assert list(tree.specs) == list(state)
    for key, tensor in state.items():
        spec = tree[key]
        assert spec.shape == tuple(tensor.shape)
        assert f"torch.{spec.dtype}" == str(tensor.dtype)
        assert spec.device == str(tensor.device)
        assert (spec.strides or torch.empty(spec.shape).stride()) == tensor.stride()


def shared() -> nn.Module:
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.ModuleDict({"a": block, "b": nn.ModuleList([block])})


MODELS: dict[str, Callable[[], nn.Module]] = {
    "nested Sequential": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), nn.BatchNorm2d(2)
    ),
    "DataParallel": lambda: nn.DataParallel(nn.Sequential(nn.Linear(2, 2))),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(2, 2))),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)),
    "tied": Tied,
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(2, 3)),
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Linear(2, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(2, 3)),
    "buffers": Buffers,
    "attention": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
    "LSTM": lambda: nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
    "shared": shared,
    "renaming": Renaming,
    "own state_dict": Bare,
    "extra tensor": lambda: Extra(torch.zeros(3, dtype=torch.uint8)),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
    "checkpointed": lambda: _checkpointed(nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
    "empty": nn.Identity,
    "scalars and empties": lambda: nn.ParameterList(
        [torch.tensor(1.0), torch.zeros(0, 3), torch.zeros(0, 3)]
    ),
}


def _checkpointed(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return nn.Sequential(checkpoint_wrapper(model), nn.ReLU())


@pytest.mark.parametrize("name", MODELS)
def test_keys_and_specs_are_those_of_the_state_dict(name: str) -> None:
    model = MODELS[name]()
    assert_same(snapshot(model), model)


@pytest.mark.parametrize(
    "name", [n for n in MODELS if n not in ("scripted", "spectral_norm", "old weight_norm")]
)
def test_meta_gives_the_same_tree(name: str) -> None:
    real = snapshot(MODELS[name]())
    with torch.device("meta"):
        on_meta = snapshot(MODELS[name]())
    assert on_meta.digest == real.digest
    assert list(on_meta.specs) == list(real.specs)
    assert on_meta.ties == real.ties
    assert on_meta.modules == real.modules


LEAVES = st.sampled_from([nn.ReLU(), nn.Dropout()]) | st.builds(
    lambda shape, dtype, param: _leaf(shape, dtype, param),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.booleans(),
)


def _leaf(shape: list[int], dtype: torch.dtype, param: bool) -> nn.Module:
    module = nn.Module()
    tensor = torch.empty(shape, dtype=dtype)
    if param:
        module.register_parameter("w", nn.Parameter(tensor, requires_grad=dtype.is_floating_point))
    else:
        module.register_buffer("w", tensor)
    return module


NAMES = st.text(min_size=1, max_size=4).filter(lambda n: "." not in n and not hasattr(nn.ModuleDict, n))
TREES = st.recursive(
    LEAVES, lambda kids: st.dictionaries(NAMES, kids, max_size=4).map(nn.ModuleDict), max_leaves=12
)


@given(TREES)
def test_law_snapshot_is_the_state_dict(model: nn.Module) -> None:
    tree = snapshot(model)
    assert_same(tree, model)
    assert set(tree.modules) >= {path for path, _ in model.named_modules(remove_duplicate=False)}
    for key, spec in tree.specs.items():
        assert (spec.kind == "param") == (key in dict(model.named_parameters(remove_duplicate=False)))


def test_ties_are_found_however_they_are_made() -> None:
    assert snapshot(Tied()).ties == (("emb.weight", "head.weight"),)
    by_data = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    by_data[1].weight.data = by_data[0].weight.data
    assert snapshot(by_data).ties == (("0.weight", "1.weight"),)
    view = nn.ParameterList([torch.zeros(4, 4), torch.zeros(1)])
    view[1] = nn.Parameter(view[0].data[2:])
    tree = snapshot(view)
    assert tree.ties == ()
    assert tree["0"].storage == tree["1"].storage
    assert tree["1"].offset == 8
    assert snapshot(shared()).ties == (("a.0.weight", "b.0.0.weight"), ("a.0.bias", "b.0.0.bias"))


def test_separate_tensors_are_not_tied() -> None:
    same = nn.ModuleList([nn.Linear(3, 3) for _ in range(50)])
    assert snapshot(same).ties == ()
    assert snapshot(same.to("meta")).ties == ()


def test_kinds_and_transient_buffers() -> None:
    tree = snapshot(nn.Sequential(nn.BatchNorm1d(2), Buffers()))
    assert {k: s.kind for k, s in tree.specs.items()} == {
        "0.weight": "param",
        "0.bias": "param",
        "0.running_mean": "buffer",
        "0.running_var": "buffer",
        "0.num_batches_tracked": "buffer",
        "1.kept": "buffer",
    }
    assert {k: (s.shape, s.kind) for k, s in tree.transient.items()} == {"1.left_out": ((2, 2), "buffer")}


def test_kinds_survive_renaming_hooks() -> None:
    assert snapshot(Renaming())["renamed"].kind == "param"
    assert (
        snapshot(parametrizations.weight_norm(nn.Linear(2, 3)))["parametrizations.weight.original0"].kind
        == "param"
    )


def test_modules_have_every_path_and_class() -> None:
    assert snapshot(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Sequential())).modules == {
        "": "Sequential",
        "0": "Linear",
        "1": "ReLU",
        "2": "Sequential",
    }
    assert list(snapshot(shared()).modules) == ["", "a", "a.0", "a.1", "b", "b.0", "b.0.0", "b.0.1"]
    wrapped = snapshot(torch.compile(nn.DataParallel(nn.Linear(1, 1)))).modules
    assert wrapped["_orig_mod"] == "DataParallel"
    assert wrapped["_orig_mod.module"] == "Linear"
    assert snapshot(torch.jit.script(nn.Sequential(nn.Linear(1, 1)))).modules["0"] == "Linear"


def test_module_paths_are_spelled_as_the_keys() -> None:
    tree = snapshot(_checkpointed(nn.Sequential(nn.Linear(2, 2))))
    assert list(tree.specs) == ["0.0.weight", "0.0.bias"]
    assert tree.modules == {"": "Sequential", "0": "Sequential", "0.0": "Linear", "1": "ReLU"}


def test_versions() -> None:
    tree = snapshot(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))
    assert (tree.versions["0"], tree.versions["1"]) == (2, 1)


def test_extra_state_is_described_never_shown() -> None:
    assert snapshot(Extra({"a": 1, "b": 2})).extra == {"_extra_state": "dict of 2"}
    assert snapshot(nn.Sequential(Extra(None))).extra == {"0._extra_state": "None"}
    tree = snapshot(Extra(torch.zeros(3)))
    assert not tree.extra
    assert tree["_extra_state"].kind == ""


def test_lazy_modules_are_refused_by_name() -> None:
    with pytest.raises(TargetError, match=r"4 lazy tensors.*`0.weight`, `0.bias`.*first batch"):
        snapshot(nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(2)))


@pytest.mark.parametrize(
    ("thing", "words"),
    [(nn.Linear, "the class Linear; call the class"), ({"a": 1}, "dict of 1"), (None, "None")],
)
def test_what_is_no_model_is_refused(thing: nn.Module, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        snapshot(thing)


def test_a_model_that_contains_itself_is_refused() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    model[0].me = model
    with pytest.raises(TargetError, match="itself"):
        snapshot(model)


def test_a_state_dict_that_raises_is_named() -> None:
    class Broken(nn.Module):
        def state_dict(self, **kwargs: object) -> dict[str, torch.Tensor]:
            raise ValueError("no \x1b[31m weights")

    with pytest.raises(TargetError, match=r"Broken.state_dict\(\) raises ValueError: no \\x1b\[31m weights"):
        snapshot(Broken())


def test_sparse_and_quantized_tensors() -> None:
    model = nn.Module()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("quantized", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    tree = snapshot(model)
    assert (tree["sparse"].layout, tree["sparse"].shape) == ("sparse_coo", (3, 3))
    assert (tree["quantized"].layout, tree["quantized"].dtype) == ("quantized", "qint8")


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    snapshot(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_lines_of_assignments() -> None:
    place = class_lines(nn.Sequential(Tied()))
    source = Path(__file__).read_text().splitlines()
    for path, code in {"0.emb": "self.emb =", "0.head": "self.head ="}.items():
        assert code in source[int(place[path].rpartition(":")[2]) - 1]
    assert "" not in place  # nn.Sequential is torch's own
    assert class_lines(Tied())[""].endswith(f":{source.index('class Tied(nn.Module):') + 1}")
    assert "self.register_buffer" in source[int(class_lines(Buffers())["kept"].rpartition(":")[2]) - 1]


def test_a_hundred_thousand_keys_are_read() -> None:
    model = nn.ModuleList(nn.BatchNorm1d(1, device="meta") for _ in range(20_000))
    tree = snapshot(model)
    assert len(tree) == 100_000
