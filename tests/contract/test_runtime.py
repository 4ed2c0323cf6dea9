"""``register_migrations``: plain load_state_dict takes old checkpoints, and only those that it knows."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckptdoctor.contract.history import History
from ckptdoctor.contract.judge import tree_archive
from ckptdoctor.contract.migration import head_text, read_migration, write_migration
from ckptdoctor.contract.propose import propose, write_proposals
from ckptdoctor.contract.runtime import register_migrations
from ckptdoctor.contract.units import Unit
from ckptdoctor.decisions import parse_decisions
from ckptdoctor.diagnosis import examine
from ckptdoctor.errors import ApplyError, ContractError
from ckptdoctor.plan import Plan
from ckptdoctor.plan.toml import from_dict
from ckptdoctor.settings.model import Model
from ckptdoctor.targets import Target, snapshot
from ckptdoctor.trees import ParamTree

UNIT = Unit("net", Model(name="net", entry="m.py:Net"), {}, "ckpt", "backward", "strict")


class Old(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.fc = nn.Linear(4, 2)


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))])
        self.fc = nn.Linear(4, 2)


class New(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))])
        self.head = nn.Linear(4, 2)
        self.extra = nn.Linear(4, 4)


def planned(source: ParamTree, target: ParamTree, *decisions: str) -> Plan:
    found = examine(tree_archive(source, "old.tree"), Target(target, "m.py:Net"), parse_decisions(decisions))
    assert found.plan is not None and found.plan.complete, found
    return found.plan


def chain(root: Path, *steps: tuple[nn.Module, nn.Module, tuple[str, ...]]) -> Path:
    """A folder of migrations from one model to the next."""
    history = History()
    for before, after, decisions in steps:
        source, target = snapshot(before), snapshot(after)
        made = propose(UNIT, history, [(planned(source, target, *decisions), source, target)])
        write_proposals(root, UNIT, [m for _, m in made])
        history = History((*history.migrations, *(m for _, m in made)))
    return root / UNIT.migrations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return chain(tmp_path, (Old(), Middle(), ()), (Middle(), New(), ("reinit=extra.**",)))


def filled(model: nn.Module) -> OrderedDict[str, Any]:
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.state_dict()


def test_each_release_goes_through_its_part_of_the_chain(folder: Path) -> None:
    for old, fc in ((Old(), "fc"), (Middle(), "fc"), (New(), "head")):
        state = filled(old)
        model = New()
        extra = model.extra.weight.detach().clone()
        register_migrations(model, folder)
        result = model.load_state_dict(state)
        assert not result.missing_keys and not result.unexpected_keys
        assert torch.equal(model.head.weight, state[f"{fc}.weight"])
        first = "layer1.0" if isinstance(old, Old) else "stages.0.0"
        assert torch.equal(model.stages[0][0].weight, state[f"{first}.weight"])
        if not isinstance(old, New):
            assert torch.equal(model.extra.weight, extra), "what the decision keeps is the model's own"


def test_the_callers_state_dict_is_not_touched(folder: Path) -> None:
    state = filled(Old())
    keys, metadata = list(state), dict(state._metadata)
    model = New()
    register_migrations(model, folder)
    model.load_state_dict(state)
    assert list(state) == keys
    assert state._metadata == metadata


def test_modules_see_the_versions_of_their_tensors(folder: Path) -> None:
    """A BatchNorm of version 2 has a counter; one that is taken for older gets a new one."""
    state = filled(Old())
    state["layer1.1.num_batches_tracked"] = torch.tensor(7)
    model = New()
    register_migrations(model, folder)
    seen = {}
    norm = model.stages[0][1]
    norm._register_load_state_dict_pre_hook(lambda d, p, metadata, *_: seen.update(metadata))
    model.load_state_dict(state)
    assert seen["version"] == 2
    assert norm.num_batches_tracked == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_the_same_release(folder: Path, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in filled(Old()).items()}
    model = New()
    register_migrations(model, folder)
    model.load_state_dict(state)
    assert torch.equal(model.head.weight, state["fc.weight"].float())


def test_a_part_of_a_larger_model(folder: Path) -> None:
    class Whole(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net
            self.other = nn.Linear(2, 2)

    old = Whole(Old())
    state = filled(old)
    new = Whole(New())
    register_migrations(new.net, folder)
    new.load_state_dict(state)
    assert torch.equal(new.net.head.weight, state["net.fc.weight"])
    assert torch.equal(new.other.weight, state["other.weight"])


def test_assign_and_meta(folder: Path) -> None:
    state = filled(Old())
    model = Middle()
    register_migrations(model, folder.parent)  # `ckpt/migrations`, with all models in it
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)
    with torch.device("meta"):
        model = New()
    register_migrations(model, folder)
    model.load_state_dict(state, assign=True)
    assert torch.equal(model.head.weight, state["fc.weight"])
    assert model.extra.weight.is_meta, "nobody gave it a value"


def test_foreign_checkpoints_get_torchs_own_error(folder: Path) -> None:
    model = New()
    register_migrations(model, folder)
    state = filled(Old())
    del state["fc.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*stages"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        model.load_state_dict({**filled(Old()), "fc.weight": torch.zeros(3, 4)})


def test_it_can_be_taken_away(folder: Path) -> None:
    model = New()
    handle = register_migrations(model, folder)
    handle.remove()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(filled(Old()))


def test_new_state_dicts_carry_the_number(folder: Path, tmp_path: Path) -> None:
    model = New()
    register_migrations(model, folder)
    state = model.state_dict()
    assert state._metadata[""]["ckptdoctor"] == 2
    assert state._metadata[""]["version"] == 3
    torch.save(state, tmp_path / "new.pth")
    assert torch.load(tmp_path / "new.pth", weights_only=True)._metadata[""]["ckptdoctor"] == 2


class Swapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)


def test_a_change_that_no_name_shows_is_told_by_its_version_or_refused(tmp_path: Path) -> None:
    tree = snapshot(Swapped())
    swap = from_dict(
        {
            "source": {"file": "a", "tree": tree.digest, "keys": 4},
            "target": {"model": "m", "tree": tree.digest, "keys": 4},
            "step": [
                {"op": "rename", "from": "a.*", "to": "b.*", "keys": 2},
                {"op": "rename", "from": "b.*", "to": "a.*", "keys": 2},
            ],
            "result": {"loaded": 4},
        }
    )
    made = propose(UNIT, History(), [(swap, tree, tree)])
    write_proposals(tmp_path, UNIT, [m for _, m in made])
    old = filled(Swapped())
    model = Swapped()
    register_migrations(model, tmp_path / UNIT.migrations)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ApplyError, match="may be older or newer than 0001-"):
        model.load_state_dict(old)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "nothing was loaded"
    old._metadata[""]["ckptdoctor"] = 0
    model.load_state_dict(old)
    assert torch.equal(model.b.weight, old["a.weight"])
    new = model.state_dict()
    model.load_state_dict(new)
    assert torch.equal(model.b.weight, old["a.weight"]), "what it saved itself is not swapped back"


def test_ties_that_do_not_hold_are_refused(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(3, 3, bias=False))
            self.out = nn.Linear(3, 3, bias=False)
            self.out.weight = getattr(self, name).weight

    folder = chain(tmp_path, (Tied("enc"), Tied("encoder"), ()))
    model = Tied("encoder")
    register_migrations(model, folder)
    state = {k: v.clone() for k, v in filled(Tied("enc")).items()}
    model.load_state_dict(state)
    with pytest.raises(ApplyError, match=r"one tensor of the model|as a copy of"):
        model.load_state_dict({**state, "out.weight": torch.zeros(3, 3)})


def test_wrong_folders_and_broken_chains_are_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no folder of migrations"):
        register_migrations(New(), tmp_path / "migrations" / "nte")
    (tmp_path / "ckpt" / "fresh.tree").write_text("# ckptdoctor tree 1\n")
    register_migrations(New(), tmp_path / "ckpt" / "migrations" / "fresh")  # a lock, and no migration yet
    first = min(folder.glob("*.toml"))
    first.write_text(first.read_text() + "# edited\n")
    with pytest.raises(ContractError, match="does not follow"):
        register_migrations(New(), folder)


def test_the_file_reads_back(folder: Path) -> None:
    for file in sorted(folder.glob("*.toml")):
        text = file.read_text()
        again = read_migration(text, file.name)
        assert write_migration(again) == text
        assert read_migration(text.replace("\n", "\r\n"), file.name).digest == again.digest
    assert (folder / "head").read_text() == head_text(again)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("number = 1\n", "number = 0\n", r"0001-x\.toml:\d+: `migration\.number`"),
        ('model = "net"\n', "", r"0001-x\.toml:\d+: `migration\.model`: Field required"),
        ("from = [\n", "form = [\n", r"`trees\.f"),
        (
            '"# ckptdoctor tree 1",\n',
            '"# ckptdoctor tree 9",\n',
            r"\[trees\] from:1: a tree of another format",
        ),
        ('op = "rename"', 'op = "renam"', r"0001-x\.toml: the plan cannot be read"),
        ("format = 1", "format = ", r"0001-x\.toml: the plan is no TOML"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_place(folder: Path, old: str, new: str, words: str) -> None:
    from ckptdoctor.errors import PlanError

    text = min(folder.glob("*.toml")).read_text()
    assert old in text
    with pytest.raises(PlanError, match=words):
        read_migration(text.replace(old, new, 1), "0001-x.toml")
