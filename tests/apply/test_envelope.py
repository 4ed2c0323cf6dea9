"""`keep_envelope`: everything around the repaired state dict is what it was, for an unrestricted torch.load."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import functools
import pickle
import random
import re
import uuid
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import ckptdoctor as ckd
from ckptdoctor.errors import ApplyError, VerifyError
from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.opcodes import OpcodeTree

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class Config:
    """No allow-list knows it."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Slotted:
    __slots__ = ("left", "right")


class Filled(dict):
    """A dict with attributes, as configuration libraries make them."""


class Reduced:
    """Made by a call, as numpy's scalars are."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, self.args, {"state": list(self.args)}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(old: Any, new: Any, but: tuple[int, int]) -> None:
    """Equal with the same sharing, storages bit for bit. ``but``: ids of the state dict, then and now."""
    pairs: dict[int, int] = {but[0]: but[1]}
    memory: dict[int, int] = {}
    stack = [(old, new)]
    while stack:
        a, b = stack.pop()
        if isinstance(a, bool | int | str | bytes | float | complex | type(None) | torch.dtype | type):
            assert type(a) is type(b) and (a == b or a != a)
            continue
        if id(a) in pairs:
            assert pairs[id(a)] == id(b), (a, b)
            continue
        assert type(a) is type(b)
        if not (type(a) is tuple and not a):
            pairs[id(a)] = id(b)
        if isinstance(a, torch.Tensor):
            assert (a.dtype, a.shape, a.stride(), a.storage_offset(), a.requires_grad) == (
                b.dtype, b.shape, b.stride(), b.storage_offset(), b.requires_grad,
            )  # fmt: skip
            x, y = a.untyped_storage(), b.untyped_storage()
            assert bytes(x) == bytes(y)
            if x.nbytes():
                assert memory.setdefault(x.data_ptr(), y.data_ptr()) == y.data_ptr()
        elif isinstance(a, np.ndarray | np.generic):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
        elif isinstance(a, dict):
            assert len(a) == len(b)
            stack += [
                pair for x, y in zip(a.items(), b.items(), strict=True) for pair in zip(x, y, strict=True)
            ]
            if isinstance(a, collections.defaultdict):
                assert a.default_factory is b.default_factory
        elif isinstance(a, list | tuple):
            assert len(a) == len(b)
            stack += zip(a, b, strict=True)
        elif isinstance(a, set | frozenset):
            assert a == b
        elif isinstance(a, Slotted):
            stack += [(a.left, b.left), (a.right, b.right)]
        if hasattr(a, "__dict__") and not isinstance(a, torch.Tensor):
            stack.append((vars(a), vars(b)))


ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=300),
    st.binary(max_size=300), st.sampled_from([torch.float16, np.float64(1.5), frozenset({1, "a"}), int]),
)  # fmt: skip


@st.composite
def envelopes(draw: st.DrawFn) -> tuple[Any, dict[str, torch.Tensor]]:
    """An envelope, and the state dict in it: shared objects, views, cycles, unknown classes."""
    flat = torch.arange(24.0)
    pool: list[Any] = [
        flat[2:8].view(2, 3),
        flat,
        torch.zeros(0),
        torch.ones(5).half(),
        flat[::2],
        np.arange(3.0),
    ]
    pool.append(nn.Parameter(torch.eye(2)))
    state = {f"module.{k}": v for k, v in net().state_dict().items()}
    shared = draw(st.sets(st.sampled_from([*state]), max_size=3))
    if draw(st.booleans()):
        state["module.0.weight"] = flat[:12].view(4, 3)
    pool += [state[k] for k in shared]

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        some = st.lists(inner, max_size=4)
        named = st.dictionaries(st.one_of(st.text(max_size=5), st.integers(0, 300)), inner, max_size=4)
        return st.one_of(
            some, some.map(tuple), named, named.map(collections.OrderedDict), some.map(lambda v: Reduced(*v)),
            named.map(lambda v: Config(**{str(k): x for k, x in v.items()})), named.map(Filled),
            named.map(lambda v: argparse.Namespace(values=v)),
            named.map(lambda v: collections.defaultdict(list, v)),
        )  # fmt: skip

    values = st.recursive(
        st.one_of(ATOMS, st.sampled_from(range(len(pool))).map(pool.__getitem__)), grow, max_leaves=12
    )
    rest: list[Any] = draw(st.lists(values, max_size=5))
    for value in [v for v in rest if not isinstance(v, bool | int | str | bytes | float | type(None))]:
        if draw(st.booleans()):
            rest.append(value)  # the same object again
    cycle: list[Any] = [draw(values)]
    slots = Slotted()
    slots.left, slots.right = cycle, (cycle,)
    cycle.append(slots)
    rest += draw(st.sampled_from([[], [cycle], [slots, cycle]]))
    where = draw(st.integers(0, len(rest)))
    root = {f"k{i}": v for i, v in enumerate(rest[:where])}
    root |= draw(st.sampled_from([
        {"state_dict": state}, {"meta": {"inner": state}, "list": [1, 2]}, {"nets": [state, 7]},
        {"net": state, "again": state}, {"holder": Config(weights=state, step=3)},
    ]))  # fmt: skip
    root |= {f"k{i + where}": v for i, v in enumerate(rest[where:])}
    if draw(st.booleans()):
        root["root"] = root
    return root, state


def repaired(path: Path, out: Path, model: nn.Module, **how: Any) -> Any:
    (chosen,) = {s.path for s in open_checkpoint(path).state_dicts if "module.0.weight" in s.tree}
    plan = ckd.plan(model, path, decisions=[f"choose={chosen}"] if chosen else [])
    return ckd.apply(plan, path, model=model, out=out, keep_envelope=True, **how)


def inside(root: Any) -> Any:
    for path in (
        lambda: root["state_dict"], lambda: root["meta"]["inner"], lambda: root["nets"][0],
        lambda: root["net"], lambda: root["holder"].weights,
    ):  # fmt: skip
        try:
            return path()
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    raise AssertionError


@given(envelopes(), st.sampled_from([2, 3, 4, 5]), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_but_the_state_dict_is_what_it_was(
    tmp_path: Path, made: tuple[Any, dict[str, torch.Tensor]], protocol: int, legacy: bool
) -> None:
    root, state = made
    source, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save(root, source, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    model = net()
    repaired(source, out, model)
    old, new = (torch.load(p, weights_only=False) for p in (source, out))
    same(old, new, (id(inside(old)), id(inside(new))))
    assert list(inside(new)) == list(model.state_dict())
    model.load_state_dict(inside(new), strict=True)
    for key, value in state.items():
        assert torch.equal(inside(new)[key.removeprefix("module.")], value)
    with zipfile.ZipFile(out) as file:
        assert file.testzip() is None
        weights = {v.untyped_storage().data_ptr() for v in inside(new).values() if v.numel()}
        around = torch.load(out, weights_only=False, mmap=True)
        assert len(weights) <= sum("/data/" in n for n in file.namelist()) and type(around) is dict


@given(st.recursive(ATOMS, lambda v: st.lists(v) | st.dictionaries(st.text(), v) | st.lists(v).map(tuple)),
       st.integers(0, 5))  # fmt: skip
def test_opcodes_read_and_written_again_are_the_same_pickle(value: Any, protocol: int) -> None:
    value = [value, value, {"x": value}]
    again = OpcodeTree(pickle.dumps(value, protocol), "x").written({})
    assert pickle.dumps(pickle.loads(again), 4) == pickle.dumps(
        pickle.loads(pickle.dumps(value, protocol)), 4
    )


def training(tmp_path: Path, *, steps: int = 1, model: nn.Module | None = None, **more: Any) -> Path:
    model = model or nn.DataParallel(net())
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
    made = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), **more}
    torch.save(made, tmp_path / "in.pth")
    return tmp_path / "in.pth"


def test_a_training_goes_on_from_the_repaired_file(tmp_path: Path) -> None:
    source = training(tmp_path, args=argparse.Namespace(lr=0.1), rng=torch.get_rng_state())
    model = net()
    receipt = repaired(source, tmp_path / "out.pth", model)
    assert "as in" in str(receipt) and "`optimizer`" in str(receipt)
    old, new = (torch.load(p, weights_only=False) for p in (source, tmp_path / "out.pth"))
    assert list(old) == list(new) and new["args"] == old["args"] and torch.equal(new["rng"], old["rng"])
    model.load_state_dict(new["state_dict"])
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(new["optimizer"])
    moments = old["optimizer"]["state"]
    for at, parameter in enumerate(model.parameters()):
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[at]["exp_avg"])


class Phase(enum.Enum):
    WARM = "warm"
    COLD = (1, 2)


@dataclasses.dataclass
class Best:
    score: float
    path: Path


class Scores(list):
    """A list with attributes."""


def scores() -> Scores:
    made = Scores([0.5, np.float32(0.25)])
    made.best = Best(0.5, Path("runs/best.pth"))
    return made


# What trainings put beside their weights, each of a kind that is pickled in a way of its own.
HARD: dict[str, Callable[[], Any]] = {
    "path": lambda: {"out": Path("runs/a"), "pure": [PurePosixPath("/x/y")], Path("key"): 1},
    "namespace": lambda: argparse.Namespace(lr=0.1, out=Path("x"), nested=argparse.Namespace(a=[1])),
    "numpy scalars": lambda: [np.float64(0.1), np.float32(1), np.int64(-3), np.bool_(True), np.complex64(1j)],
    "numpy times": lambda: [np.datetime64("2024-02-29T12:00"), np.timedelta64(5, "D"), np.str_("é")],
    "numpy arrays": lambda: [np.arange(6).reshape(2, 3).T, np.array(["a", None], dtype=object), np.zeros((0, 2))],
    "structured array": lambda: np.array([(1, 2.5)], dtype=[("n", "<i4"), ("x", ">f8")]),
    "random states": lambda: [random.getstate(), np.random.RandomState(3).get_state()],
    "times": lambda: [datetime(2024, 2, 29, tzinfo=UTC), timedelta(days=1, microseconds=3)],
    "enum": lambda: {Phase.WARM: Phase.COLD, "again": [Phase.WARM]},
    "dataclass": lambda: Best(0.5, Path("runs/best.pth")),
    "containers": lambda: [
        collections.deque([1, 2], 5), collections.Counter("aab"), {1, (2, 3)}, frozenset({"x"}), range(3, 9, 2),
        bytearray(b"ab"), slice(1, None), collections.OrderedDict(b=1, a=2), ...,
    ],
    "a list with attributes": scores,
    "numbers": lambda: [Decimal("0.10"), Fraction(1, 3), 2**80, -0.0, float("inf"), 1 - 2j],
    "functions": lambda: [functools.partial(torch.optim.SGD, lr=0.1), torch.relu, len, Best, nn.Linear],
    "words of torch": lambda: [torch.Size([2, 3]), torch.device("cuda:1"), torch.bfloat16, torch.strided],
    "uuid": lambda: uuid.UUID(int=7),
    "a pattern": lambda: re.compile("a.b", re.I),
    "errors": lambda: ValueError("told", 3).args,
    "deep": lambda: functools.reduce(lambda inner, _: [inner], range(200), Path("deep")),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", HARD)
def test_what_trainings_put_beside_their_weights_is_equal(tmp_path: Path, kind: str, protocol: int) -> None:
    state = {f"module.{k}": v for k, v in net().state_dict().items()}
    value = HARD[kind]()
    whole = {"before": value, "state_dict": state, "behind": [value, state["module.0.weight"]]}
    torch.save(whole, tmp_path / "in.pth", pickle_protocol=protocol)
    repaired(tmp_path / "in.pth", tmp_path / "out.pth", net())
    old, new = (torch.load(tmp_path / f"{n}.pth", weights_only=False) for n in ("in", "out"))
    for found in (old, new):
        assert found["behind"][0] is found["before"], "one object"
        assert pickle.dumps(found["before"], 5) == pickle.dumps(old["before"], 5)
    same(old, new, (id(old["state_dict"]), id(new["state_dict"])))
    assert new["behind"][1].data_ptr() == new["state_dict"]["0.weight"].data_ptr(), "shared as before"


def test_everything_at_once_and_the_optimizer_shares_memory_with_the_model(tmp_path: Path) -> None:
    """As in trainings that put the parameters themselves into the optimizer, and average in place."""
    model = nn.DataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = model.state_dict(keep_vars=True)
    first = state["module.0.weight"]
    optimizer.state[first]["lookahead"] = first  # a parameter
    optimizer.state[first]["part"] = first.detach()[1:3]  # a view of it
    ema = {k: v if k.endswith("bias") else v.detach().clone() for k, v in state.items()}
    rest = {kind: make() for kind, make in HARD.items()}
    whole = {"state_dict": state, "optimizer": optimizer.state_dict(), "ema": {"shadow": ema}, "rest": rest}
    torch.save(whole, tmp_path / "in.pth")
    fresh = net()
    plan = ckd.plan(fresh, tmp_path / "in.pth", decisions=["choose=state_dict"])
    ckd.apply(plan, tmp_path / "in.pth", model=fresh, out=tmp_path / "out.pth", keep_envelope=True)
    old, new = (torch.load(tmp_path / f"{n}.pth", weights_only=False) for n in ("in", "out"))
    assert pickle.dumps(old["rest"]) == pickle.dumps(new["rest"]) and list(old) == list(new)
    same(
        {k: v for k, v in old.items() if k != "state_dict"},
        {k: v for k, v in new.items() if k != "state_dict"},
        (id(old["state_dict"]), id(new["state_dict"])),
    )
    weight, kept = new["state_dict"]["0.weight"], new["optimizer"]["state"][0]
    assert kept["lookahead"].data_ptr() == weight.data_ptr() == kept["part"].data_ptr() - 3 * 4
    assert new["ema"]["shadow"]["module.0.bias"].data_ptr() == new["state_dict"]["0.bias"].data_ptr()
    fresh.load_state_dict(new["state_dict"])
    torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9).load_state_dict(new["optimizer"])


class Reordered(nn.Module):
    """The parameters of `net`, listed in another order."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("2", "0", "1"):
            self.add_module(name, net()[int(name)])


def test_moments_by_position_are_not_kept_beside_parameters_in_another_order(tmp_path: Path) -> None:
    source = training(tmp_path)
    with pytest.raises(ApplyError, match=r"(?s)moments in `optimizer`.*another order.*auto_resume"):
        repaired(source, tmp_path / "out.pth", Reordered())
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]
    source = training(tmp_path, steps=0)  # no moments yet: nothing can be mixed up
    repaired(source, tmp_path / "out.pth", Reordered())


def test_a_kept_average_shares_its_memory_as_before(tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in net().state_dict().items()}
    big = torch.randn(100, 3)
    state["module.0.weight"] = big[10:14]
    torch.save({"model": state, "ema": {"w": state["module.2.weight"], "all": big}}, tmp_path / "in.pth")
    repaired(tmp_path / "in.pth", tmp_path / "out.pth", net())
    new = torch.load(tmp_path / "out.pth")
    assert new["ema"]["w"].data_ptr() == new["model"]["2.weight"].data_ptr()
    assert new["model"]["0.weight"].data_ptr() == new["ema"]["all"][10:].data_ptr()
    assert torch.equal(new["model"]["0.weight"], big[10:14])


def test_what_is_only_in_the_old_state_dict_is_gone_from_the_file(tmp_path: Path) -> None:
    old = {f"module.{k}": v for k, v in net().state_dict().items()}
    old["module.0.weight"] = torch.randn(400_000, 3)[:4]
    torch.save({"model": old, "epoch": 1}, tmp_path / "in.pth")
    repaired(tmp_path / "in.pth", tmp_path / "out.pth", net())
    assert (tmp_path / "out.pth").stat().st_size < 10_000


def test_a_damaged_storage_of_the_envelope_is_not_carried_over(tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in net().state_dict().items()}
    kept = torch.full((1000,), 5.0)
    torch.save({"model": state, "other": [kept, "x"]}, tmp_path / "in.pth")
    raw = bytearray((tmp_path / "in.pth").read_bytes())
    raw[raw.find(kept.numpy().tobytes()) + 7] ^= 1
    (tmp_path / "in.pth").write_bytes(raw)
    with pytest.raises(ckd.CkptDoctorError, match="checksum"):
        repaired(tmp_path / "in.pth", tmp_path / "out.pth", net())
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


@pytest.mark.parametrize("what", ["value", "order", "sharing", "storage", "class"])
def test_verification_sees_what_a_wrong_writer_would_change(tmp_path: Path, monkeypatch, what: str) -> None:
    from ckptdoctor.writers import torch_file

    twice = [1, 2]
    rest = {"a": twice, "b": twice, "c": Config(x=1), "t": [torch.arange(50.0), 0]}
    torch.save(
        {"model": {f"module.{k}": v for k, v in net().state_dict().items()}, **rest}, tmp_path / "in.pth"
    )
    changes = {
        "value": (b"K\x01K\x02", b"K\x01K\x03"), "class": (b"\nConfig\n", b"\nConfix\n"),
        "order": (b"X\x01\x00\x00\x00a", b"X\x01\x00\x00\x00z"),
    }  # fmt: skip
    make = torch_file.enveloped

    def wrong(*args: Any) -> Any:
        outline = make(*args)
        pickled = outline.pickle
        if what in changes:
            assert changes[what][0] in pickled
            pickled = pickled.replace(*changes[what])
        if what == "sharing":
            at = pickled.index(b"X\x01\x00\x00\x00b") + 6  # put, then get of the list
            at += 2
            assert pickled[at : at + 1] == b"h"
            pickled = pickled[:at] + b"](K\x01K\x02e" + pickled[at + 2 :]
        storages = dict(outline.storages)
        if what == "storage":
            name = next(n for n, p in storages.items() if p.nbytes == 200)
            storages[name] = type(storages[name])(
                (200,), "uint8", make=lambda: torch.zeros(200, dtype=torch.uint8)
            )
        return type(outline)(pickled, storages, outline.computable)

    monkeypatch.setattr(torch_file, "enveloped", wrong)
    with pytest.raises(VerifyError, match="is not what it was"):
        repaired(tmp_path / "in.pth", tmp_path / "out.pth", net())
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_what_cannot_be_kept_is_refused_with_the_reason(tmp_path: Path) -> None:
    source, out = training(tmp_path), tmp_path / "out.pth"
    for how, words in (({"max_shard_size": 50}, "shards"), ({"probe": "p.pt"}, "probe")):
        with pytest.raises((ApplyError, ckd.CkptDoctorError), match=words):
            repaired(source, out, net(), **how)
    with pytest.raises(ApplyError, match="safetensors holds tensors only"):
        repaired(source, tmp_path / "out.safetensors", net())
    flat = {f"module.{k}": v for k, v in net().state_dict().items()}
    torch.save({**flat, "epoch": 3}, source)
    with pytest.raises(ApplyError, match="epoch is among the tensors of the state dict itself"):
        repaired(source, out, net())
    torch.save({"model": net(), "epoch": 3}, source)
    plan = ckd.plan(net(), source)
    with pytest.raises(ApplyError, match="a pickled module, which has no place for other names"):
        ckd.apply(plan, source, model=net(), out=out, keep_envelope=True)
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_a_file_without_an_envelope_is_written_as_ever(tmp_path: Path) -> None:
    torch.save({f"module.{k}": v for k, v in net().state_dict().items()}, tmp_path / "in.pth")
    receipt = repaired(tmp_path / "in.pth", tmp_path / "out.pth", net())
    assert not receipt.notes
    net().load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))


def test_a_pickled_module_of_a_legacy_file_is_carried_over_with_its_class(tmp_path: Path) -> None:
    """Such files name the class by a persistent id with its source code, which zip files do not have."""
    state = {f"module.{k}": v for k, v in net().state_dict().items()}
    kept = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    whole = {"state_dict": state, "head": kept, "again": [kept[0], nn.Linear(2, 3)], "x": Config(a=1)}
    torch.save(whole, tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    assert b"class Linear(Module)" in (tmp_path / "in.pth").read_bytes()
    repaired(tmp_path / "in.pth", tmp_path / "out.pth", net())
    new = torch.load(tmp_path / "out.pth", weights_only=False)
    assert type(new["head"]) is nn.Sequential and new["again"][0] is new["head"][0]
    assert all(torch.equal(a, b) for a, b in zip(new["head"].parameters(), kept.parameters(), strict=True))
    net().load_state_dict(new["state_dict"])


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "uint16", "bfloat16", "complex64", "bool"])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_kind_of_storage_can_be_shared_with_the_envelope(
    tmp_path: Path, dtype: str, legacy: bool
) -> None:
    model = nn.Module()
    model.register_buffer("x", torch.zeros(3, 4, dtype=getattr(torch, dtype)))
    model.register_buffer("y", torch.zeros(2, 2))
    raw = (
        torch.arange(2, 2 + 20 * model.x.element_size())
        .to(torch.uint8)
        .remainder(2 if dtype == "bool" else 255)
    )
    big = raw.view(getattr(torch, dtype))
    state = {"module.x": big[8:20].view(3, 4), "module.y": torch.ones(2, 2)}
    torch.save({"net": state, "all": big}, tmp_path / "in.pth", _use_new_zipfile_serialization=not legacy)
    plan = ckd.plan(model, tmp_path / "in.pth", decisions=["choose=net"])
    ckd.apply(plan, tmp_path / "in.pth", model=model, out=tmp_path / "out.pth", keep_envelope=True)
    new = torch.load(tmp_path / "out.pth")
    assert bytes(new["all"].untyped_storage()) == raw.numpy().tobytes()
    assert new["net"]["x"].dtype == big.dtype
    assert new["net"]["x"].data_ptr() == new["all"].data_ptr() + 8 * big.element_size()
