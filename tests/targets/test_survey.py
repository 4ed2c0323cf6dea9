"""One walk over a model: its state dict without asking the model, wherever no code of the model has a part in it."""

from collections.abc import Callable
from operator import is_
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

from ckptdoctor.errors import TargetError
from ckptdoctor.targets import snapshot
from ckptdoctor.targets.survey import columns_of, survey
from tests.targets.test_module import MODELS, TREES


def assert_as_the_model_says(model: nn.Module) -> None:
    found = survey(model)
    try:
        state = model.state_dict(keep_vars=True)
    except TypeError:
        state = model.state_dict()
    assert list(found.state) == list(state)
    if found.plain:
        assert all(map(is_, found.state.values(), state.values()))
        assert found.metadata == state._metadata
        slots = {id(t) for t in (*model.parameters(), *model.buffers())}
        assert {id(t) for t in (*found.tensors.values(), *found.hidden.values())} == slots
    assert found.visited == list(model.named_modules(remove_duplicate=False))
    assert {id(m) for m in found.modules} == {id(m) for m in model.modules()}


@pytest.mark.parametrize("name", MODELS)
def test_the_state_dict_is_that_of_the_model(name: str) -> None:
    assert_as_the_model_says(MODELS[name]())


@given(TREES)
def test_law_the_walk_is_the_state_dict(model: nn.Module) -> None:
    assert survey(model).plain
    assert_as_the_model_says(model)


class Saving(nn.Linear):
    def _save_to_state_dict(self, *args: Any) -> None:
        super()._save_to_state_dict(*args)


class Asking(nn.Linear):
    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return 1


class Stating(nn.Linear):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs)


class Loading(nn.Linear):
    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)


class Taking(nn.Linear):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(*args, **kwargs)


def changed(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = nn.Linear(2, 2)
    change(model)
    return model


def none(*args: Any) -> None:
    return None


# What a module may bring -> whether the state dict is still that of the tables, and whether loading is plain.
CODE: dict[str, tuple[Callable[[], nn.Module], bool, bool]] = {
    "none": (lambda: nn.Linear(2, 2), True, True),
    "_save_to_state_dict": (lambda: Saving(2, 2), False, False),
    "__getattribute__": (lambda: Asking(2, 2), False, False),
    "get_extra_state": (lambda: Extra(2, 2), False, False),
    "state_dict": (lambda: Stating(2, 2), False, False),
    "_load_from_state_dict": (lambda: Loading(2, 2), True, False),
    "load_state_dict": (lambda: Taking(2, 2), True, False),
    "batch norm": (lambda: nn.BatchNorm1d(2), True, False),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 2)), False, False),
    "own state_dict": (lambda: changed(lambda m: setattr(m, "state_dict", m.state_dict)), False, False),
    "own method": (
        lambda: changed(lambda m: setattr(m, "_save_to_state_dict", m._save_to_state_dict)),
        False,
        False,
    ),
    "state_dict hook": (lambda: changed(lambda m: m.register_state_dict_post_hook(none)), False, False),
    "private hook": (
        lambda: changed(lambda m: m._register_state_dict_hook(lambda *args: None)),
        False,
        False,
    ),
    "pre-hook": (lambda: changed(lambda m: m.register_state_dict_pre_hook(none)), False, False),
    "load pre-hook": (lambda: changed(lambda m: m.register_load_state_dict_pre_hook(none)), True, False),
    "load post-hook": (lambda: changed(lambda m: m.register_load_state_dict_post_hook(none)), True, False),
}


@pytest.mark.parametrize("what", CODE)
@pytest.mark.parametrize("inside", [False, True])
def test_code_of_the_model_is_seen(what: str, inside: bool) -> None:
    make, plain, loads = CODE[what]
    model = nn.Sequential(nn.ReLU(), nn.ModuleDict({"a": make()})) if inside else make()
    found = survey(model)
    assert (found.plain, found.loads) == (plain, loads)
    assert_as_the_model_says(model)


@pytest.mark.parametrize("name", ["state_dict", "_save_to_state_dict", "_load_from_state_dict"])
def test_a_patched_torch_is_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    old = getattr(nn.Module, name)
    monkeypatch.setattr(nn.Module, name, lambda self, *args, **kwargs: old(self, *args, **kwargs))
    found = survey(nn.Linear(2, 2))
    assert not found.plain
    assert not found.loads


def test_the_state_dict_of_a_patched_torch_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    old = nn.Module.state_dict
    monkeypatch.setattr(nn.Module, "state_dict", lambda self, **kwargs: {"x": old(self, **kwargs)["weight"]})
    assert list(survey(nn.Linear(2, 2)).state) == ["x"]


def test_columns_tell_every_difference_and_memory() -> None:
    base = torch.zeros(4, 4)
    kinds: list[torch.Tensor] = [
        base, base[:2], base.t(), base[1:3], base.half(), nn.Parameter(base), base.to("meta"),
        torch.zeros(4, 4, dtype=torch.complex64).conj(), torch.zeros(4, 4, dtype=torch.complex64),
        torch.zeros(4, 4, dtype=torch.complex64).conj().imag, base.to_sparse(),
    ]  # fmt: skip
    with torch.inference_mode():
        kinds.append(torch.zeros(4, 4))
    for tensors in (kinds, [t for t in kinds if t.layout == torch.strided]):
        found = columns_of([*tensors, *tensors])
        assert len(set(found.looks)) == len(tensors)
        assert found.looks[: len(tensors)] == found.looks[len(tensors) :]
        assert found.shared
        assert len({found.memories[i] for i in (0, 1, 2, 3, 5)}) == 1
        assert len(set(found.memories)) == len(tensors) - 4
    assert not columns_of([torch.zeros(2) for _ in range(9)]).shared
    assert not columns_of([torch.zeros(2, device="meta") for _ in range(9)]).shared
    assert not columns_of([]).shared


class Bare(nn.Module):
    def __init__(self) -> None:
        pass  # the call of super().__init__() was forgotten


class Computed(nn.Module):
    """Keeps no table of its buffers."""

    @property
    def _buffers(self) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(2)}

    @_buffers.setter
    def _buffers(self, value: dict[str, torch.Tensor]) -> None:
        pass


def test_a_module_made_without_its_base_is_named() -> None:
    outer = nn.Module()
    outer.part = Bare()
    for model in (Bare(), outer):
        with pytest.raises(TargetError, match="'Bare' object has no attribute"):
            survey(model)


def test_tables_may_be_computed() -> None:
    found = survey(Computed())
    assert list(found.state) == ["x"] and not found.plain and not found.loads


def test_a_state_dict_may_have_other_keys_than_text() -> None:
    class Numbered(nn.Linear):
        def state_dict(self, **kwargs: Any) -> Any:
            return {1: self.weight, 2: "words"}

    tree = snapshot(Numbered(2, 2))
    assert list(tree.specs) == ["1"]
    assert tree["1"].kind == "param"
    assert tree.extra == {"2": "str, 5 long"}
