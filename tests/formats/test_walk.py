"""Envelopes: every state dict is found however deep, and all the rest is named."""

import argparse
import collections
import copy
import enum
import pathlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.base import Archive
from tests.formats.describing import describe
from tests.formats.samples import assert_same, only, save_legacy, save_zip


def opened(value: object, path: Path) -> Archive:
    save_zip(path / "a.pth", value)
    return open_checkpoint(path / "a.pth")


def paths(archive: Archive) -> dict[str, list[str]]:
    return {s.path: list(s.tree.specs) for s in archive.state_dicts}


W = torch.ones(2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": W}, {"": ["a"]}),
        ({"state_dict": {"a": W}, "epoch": 3}, {"state_dict": ["a"]}),
        ({"model": {"module": {"a": W}}, "meta": {"time": "now"}}, {"model.module": ["a"]}),
        ({"params": {"a": W}, "params_ema": {"b": W + 1}}, {"params": ["a"], "params_ema": ["b"]}),
        ({"models": [{"a": W}, {"b": W}]}, {"models[0]": ["a"], "models[1]": ["b"]}),
        (
            {"encoder": {"weight": W}, "decoder": {"weight": W}},
            {"encoder": ["weight"], "decoder": ["weight"]},
        ),
        ({"callbacks": {"Best{'x'}": {"a": W}}}, {"callbacks[\"Best{'x'}\"]": ["a"]}),
        ({"a.b": {"c": W}}, {"['a.b']": ["c"]}),
        (({"a": W}, 7), {"[0]": ["a"]}),
        ({"a": W, "b": W, "epoch": 1}, {"": ["a", "b"]}),
        ({"a": W, "sub": {"b": W}}, {"": ["a"], "sub": ["b"]}),
        ({"loss": W, "epoch": 1, "lr": 0.1, "state_dict": {"a": W}}, {"state_dict": ["a"]}),
        ({"w": W, "epoch": 1, "lr": 0.1, "name": "x"}, {"": ["w"]}),
        ({"shadow": [W, W + 1]}, {"shadow": ["0", "1"]}),
        ({1: W, 2: W}, {"": ["1", "2"]}),
        ({"ns": argparse.Namespace(net={"a": W})}, {"ns.net": ["a"]}),
        ({"epoch": 1}, {}),
        (7, {}),
        (None, {}),
    ],
)
def test_state_dicts_are_found(value: object, expected: dict[str, list[str]], tmp_path: Path) -> None:
    assert paths(opened(value, tmp_path)) == expected


def test_thirty_levels_deep(tmp_path: Path) -> None:
    value: object = {"w": W}
    for level in range(30):
        value = {"model": value, "level": level} if level % 2 else [value]
    (state_dict,) = opened(value, tmp_path).state_dicts
    assert state_dict.path.count("model") == 15 and list(state_dict.tree.specs) == ["w"]


def test_optimizers_are_summed_up_and_are_no_state_dicts(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    adam = torch.optim.AdamW(
        [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 1.0}]
    )
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    archive = opened(
        {
            "state_dict": model.state_dict(),
            "optimizer_states": [adam.state_dict()],
            "opt": copy.deepcopy(adam.state_dict()),
        },
        tmp_path,
    )
    assert list(paths(archive)) == ["state_dict"]
    words = "optimizer: 2 groups, 4 parameters with exp_avg, exp_avg_sq, step"
    assert archive.rest["opt"] == words
    assert archive.tensors == 4 + 12 + 12


def test_an_optimizer_alone_is_named(tmp_path: Path) -> None:
    sgd = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    archive = opened(sgd.state_dict(), tmp_path)
    assert archive.state_dicts == () and "optimizer: 1 group, 2 parameters" in archive.rest["(the file)"]


def test_one_mapping_at_two_places_is_listed_once(tmp_path: Path) -> None:
    shared = {"a": W}
    (state_dict,) = opened({"model": shared, "best": {"net": shared}}, tmp_path).state_dicts
    assert (state_dict.path, state_dict.note) == ("model", "also at best.net")


def test_random_states_are_no_state_dicts(tmp_path: Path) -> None:
    archive = opened(
        {"state_dict": {"a": W}, "rng": [torch.get_rng_state()], "np": np.random.get_state()}, tmp_path
    )
    assert list(paths(archive)) == ["state_dict"]
    assert {"rng", "np"} <= archive.rest.keys()


class Color(enum.Enum):
    RED = 1


def test_everything_else_is_said_in_short_words(tmp_path: Path) -> None:
    values: dict[str, object] = {
        "epoch": 12, "lr": 0.5, "name": "resnet", "none": None, "flag": True, "raw": b"abc", "list": [1, 2],
        "config": {"depth": 50, "width": 2}, "args": argparse.Namespace(lr=1, batch=2), "many": 10**400,
        "path": pathlib.PurePosixPath("/data/x"), "scalar": np.float64(0.25), "array": np.ones(3), "color": Color.RED,
        "text": "a\x1b[31m\u202e" + "x" * 500, "dtype": torch.float16, "counter": collections.Counter(a=1),
    }  # fmt: skip
    rest = opened({"state_dict": {"a": W}, **values}, tmp_path).rest
    assert rest.keys() == values.keys()
    told = {k: rest[k] for k in ("epoch", "lr", "name", "none", "flag", "raw", "list", "dtype")}
    assert told == {
        "epoch": "int 12", "lr": "float 0.5", "name": "str 'resnet'", "none": "None", "flag": "bool True",
        "raw": "3 bytes", "list": "list of 2", "dtype": "torch.float16",
    }  # fmt: skip
    assert rest["config"] == "dict of 2: depth, width"
    assert rest["args"] == "argparse.Namespace with 2 attributes: lr, batch"
    assert "/data/x" in rest["path"] and "Color" in rest["color"] and "scalar" in rest["scalar"]
    assert all(len(v) < 200 and v.isprintable() for v in rest.values())


def test_a_flat_state_dict_keeps_its_other_entries_in_rest(tmp_path: Path) -> None:
    archive = opened({"a": W, "b": W, "epoch": 3, "a._extra_state": {"scale": 1}}, tmp_path)
    assert archive.rest == {"epoch": "int 3"}
    assert only(archive).tree.extra == {"a._extra_state": "dict of 1: scale"}


def test_very_many_entries_are_not_listed_one_by_one(tmp_path: Path) -> None:
    archive = opened({"state_dict": {"a": W}, **{f"k{i}": i for i in range(5000)}}, tmp_path)
    assert len(archive.rest) < 300 and "more entries" in archive.rest.values()


@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5), st.just("TENSOR")),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=25,
    )
)
def test_no_tensor_is_ever_lost(tmp_path_factory: pytest.TempPathFactory, shape: object) -> None:
    """Each tensor is counted; each one under a string key is in a state dict or in the rest."""
    count = 0

    def fill(node: object) -> object:
        nonlocal count
        if node == "TENSOR":
            count += 1
            return torch.full((1,), count)
        if isinstance(node, dict):
            return {k: fill(v) for k, v in node.items()}
        return [fill(v) for v in node] if isinstance(node, list) else node

    path = tmp_path_factory.getbasetemp() / "tree.pth"
    save_zip(path, fill(shape))
    archive = open_checkpoint(path)
    assert archive.tensors == count
    assert count == 0 or archive.state_dicts or archive.rest
    assert describe(archive)["tensors"] == count


# Whole modules, whose classes are gone when they are read


def gone_class() -> type[nn.Module]:
    """A class in a module that will not exist any more."""
    module = types.ModuleType("models_that_are_gone")
    code = """
from torch import nn
import torch
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("hidden", torch.ones(1), persistent=False)
        self.register_buffer("nothing", None)
        self.conv = nn.Conv2d(1, 2, 1)
        self.register_parameter("absent", None)
        self.scale = nn.Parameter(torch.ones(2))
        self.plain = torch.ones(3)
        self.norm = nn.BatchNorm2d(2)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.head.weight
        self.again = self.blocks[0]
"""
    exec(code, module.__dict__)
    sys.modules[module.__name__] = module
    return module.Net


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_module_whose_class_is_gone(protocol: int, legacy: bool, tmp_path: Path) -> None:
    model = gone_class()()
    expected = model.state_dict()
    save = save_legacy if legacy else save_zip
    save(tmp_path / "a.pth", {"epoch": 1, "model": model}, protocol)
    del sys.modules["models_that_are_gone"]
    archive = open_checkpoint(tmp_path / "a.pth")
    assert "models_that_are_gone" not in sys.modules
    (state_dict,) = archive.state_dicts
    assert state_dict.path == "model" and "models_that_are_gone.Net" in state_dict.note
    assert_same(archive, state_dict, expected)
    specs = state_dict.tree.specs
    assert {specs["blocks.0.scale"].kind, specs["blocks.0.norm.running_mean"].kind} == {"param", "buffer"}
    assert ("head.weight", "tied.weight") in state_dict.tree.ties
    assert [d.code for d in archive.diagnostics] == ["CKD401", "CKD402"]
    assert "models_that_are_gone.Net" in archive.unknown_globals


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: m, torch.optim.swa_utils.AveragedModel])
def test_wrapped_modules_keep_their_prefix(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = wrap(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))
    archive = opened(model, tmp_path)
    assert_same(archive, only(archive), model.state_dict())


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(2, 3, 2, bidirectional=True),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2, 8),
        nn.utils.weight_norm(nn.Linear(2, 3)),
        nn.ParameterDict({"a": nn.Parameter(W)}),
        nn.ModuleDict({"x": nn.ParameterList([nn.Parameter(W)])}),
        nn.EmbeddingBag(3, 2),
    ],
    ids=lambda m: type(m).__name__,
)
def test_modules_of_torch_are_harvested_as_their_own_state_dict(model: nn.Module, tmp_path: Path) -> None:
    archive = opened(model, tmp_path)
    assert_same(archive, only(archive), model.state_dict())


def test_scripted_modules_tell_parameters_from_buffers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.PReLU())
    torch.jit.script(model).save(str(tmp_path / "a.pt"))
    torch.jit.trace(model.eval(), torch.ones(1, 1, 2, 2)).save(str(tmp_path / "b.pt"))
    for name in ("a.pt", "b.pt"):
        archive = open_checkpoint(tmp_path / name)
        assert archive.format == "torchscript" and not archive.diagnostics
        assert_same(archive, only(archive), model.state_dict())
        kinds = {k: s.kind for k, s in only(archive).tree.specs.items()}
        assert kinds == {
            k: "param" if k in dict(model.named_parameters()) else "buffer" for k in model.state_dict()
        }


# What is unusual


def test_a_slice_of_a_large_storage_is_told(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    archive = opened({"small": big[:10], "fine": torch.zeros(100_000)}, tmp_path)
    (found,) = archive.diagnostics
    assert (found.code, found.keys) == ("CKD403", ("small",))
    assert "4.4 MB" in found.title and "clone" in found.fix.text
    assert not opened({"a": big, "b": big[:10], "c": big[10:]}, tmp_path).diagnostics


def test_other_devices_are_told(tmp_path: Path) -> None:
    save_legacy(tmp_path / "a.pth", {"a": torch.ones(1)})
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "b.pth").write_bytes(data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:3"))
    archive = open_checkpoint(tmp_path / "b.pth")
    assert only(archive).tree["a"].device == "cuda:3"
    (found,) = archive.diagnostics
    assert (found.code, found.severity) == ("CKD404", "note") and "cuda:3" in found.title
