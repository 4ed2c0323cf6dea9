"""``model.py`` without a name: what counts as a model of the file, and how one is chosen."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ckptdoctor.errors import TargetError
from ckptdoctor.targets import Target, load_target
from tests.targets.sources import NET, NET_SHAPES, Write, error, shapes

BLOCK = """
class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3)
"""
BIG = """
class Big(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.blocks = nn.Sequential(Block(), nn.ReLU(), Block())
"""


def labels(write: Write, code: str, **options: object) -> list[str]:
    """The candidates that are offered, best first."""
    write(code)
    offered: list[str] = []

    def note(targets: Sequence[Target]) -> None:
        offered.extend(t.label.removeprefix("model.py:") for t in targets)

    try:
        offered.append(load_target("model.py", prefer=note, **options).label.removeprefix("model.py:"))
    except TargetError:
        assert offered
    return offered


def test_one_model(write: Write) -> None:
    write(NET)
    target = load_target("model.py")
    assert (target.label, target.place) == ("model.py:Net", "model.py:4")
    assert shapes(target) == NET_SHAPES


def test_a_part_that_needs_arguments_is_left_out_and_said(write: Write) -> None:
    write(NET + "class Head(nn.Module):\n    def __init__(self, dim): super().__init__()\n")
    target = load_target("model.py")
    assert target.label == "model.py:Net"
    assert "not considered" in target.notes[0]
    assert "`model.py:Head`" in target.notes[0]


def test_several_are_listed_whole_models_first(write: Write) -> None:
    write(BLOCK + BIG + NET)
    words = error("model.py")
    assert words.startswith("model.py holds 3 models; name the one that is meant:\n")
    rows = [line.split() for line in words.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [
        ("model.py:Big", "4"),
        ("model.py:Net", "4"),
        ("model.py:Block", "2"),
    ]
    assert rows[0][3] == "model.py:9"


def test_the_caller_prefers(write: Write) -> None:
    write(BLOCK + BIG + NET)
    chosen = load_target(
        "model.py", prefer=lambda targets: next(i for i, t in enumerate(targets) if "fc.bias" in t.tree)
    )
    assert chosen.label == "model.py:Net"
    assert [c.label for c in chosen.candidates] == ["model.py:Big", "model.py:Net", "model.py:Block"]


def test_the_same_tree_is_one_candidate(write: Write) -> None:
    assert labels(write, NET + "def build_model():\n    return Net()\nmodel = Net()\n") == ["model"]
    assert labels(write, NET + "def small():\n    return Net(2)\nmodel = Net()\n") == ["model", "small"]


def test_modules_without_tensors_are_no_choice(write: Write) -> None:
    assert labels(write, NET + "class Swish(nn.Module):\n    def forward(self, x): return x\n") == ["Net"]
    assert labels(write, "class Swish(nn.Module):\n    def forward(self, x): return x\n") == ["Swish"]


def test_imported_and_abstract_classes_do_not_count(write: Write) -> None:
    write(NET, "parts.py")
    code = """
    import abc
    from parts import Net
    from torch.nn import Linear, Conv2d
    class Base(nn.Module, abc.ABC):
        @abc.abstractmethod
        def forward(self, x): ...
    class Mine(Net): pass
    """
    assert labels(write, code) == ["Mine"]


FACTORIES = """
def build_model():
    x = Net(3)
    return x
def resnet18(): return Net(4)
def tiny() -> nn.Module: return [Net(5)][0]
def quoted() -> "Net": return [Net(6)][0]
def outer(): return resnet18()
def create_net(): return [Net(7)][0]
@functools.cache
def cached(): return Net(9)
"""
OTHERS = """
def unclear(): return [Net(11)][0]
def main(): return Net(12)
def train_model(): return Net(13)
def load_pretrained(): return Net(14)
async def get_model(): return Net(15)
def pair(): return Net(16), 1
def _private_helper(): return [Net(17)][0]
def either():
    if torch: return Net(18)
    return None
"""


def test_only_factories_are_called(write: Write) -> None:
    spy = """
import functools
class Net(Net):
    def __init__(self, n=2):
        print(n, file=open("called", "a"), flush=True)
        super().__init__(n)
"""
    offered = labels(write, NET + spy + FACTORIES + OTHERS)
    # `outer` makes the tree of `resnet18`
    assert set(offered) == {"Net", "build_model", "resnet18", "tiny", "quoted", "create_net", "cached"}
    assert set(Path("called").read_text().split()) == {"2", "3", "4", "5", "6", "7", "9"}


def test_factories_that_need_arguments_or_return_something_else_are_no_models(write: Write) -> None:
    write(NET + "def build_model(config): return Net()\ndef get_model(): return {}\n")
    target = load_target("model.py")
    assert target.label == "model.py:Net"
    assert "`model.py:build_model`, `model.py:get_model`" in target.notes[0]


def test_arguments_choose_what_takes_them(write: Write) -> None:
    write(NET + BLOCK)
    target = load_target("model.py", kwargs={"num_classes": 3})
    assert target.label == "model.py:Net"
    assert target.tree["fc.bias"].shape == (3,)


def test_nothing_to_build(write: Write) -> None:
    write("x = 1\ndef helper(y): return y\n")
    words = error("model.py")
    assert words.startswith("model.py defines no model:")
    assert "it has `helper`" in words


def test_the_only_model_needs_arguments(write: Write) -> None:
    write("class Net(nn.Module):\n    def __init__(self, depth): super().__init__()\n")
    assert error("model.py").startswith("`model.py:Net` needs an argument: `depth`; say --kwargs")


def test_all_models_fail_each_with_its_reason(write: Write) -> None:
    write("""
    class A(nn.Module):
        def __init__(self, depth): super().__init__()
    class B(nn.Module):
        def __init__(self): raise ValueError("no")
    """)
    words = error("model.py")
    assert "none of its 2 models can be built" in words
    assert "`model.py:A` needs an argument: `depth`" in words
    assert "model.py:7: building model.py:B raises ValueError: no" in words


@pytest.mark.parametrize("fate", ["os._exit(3)", "os.kill(os.getpid(), 11)", "time.sleep(60)"])
def test_one_candidate_that_takes_the_process_down(write: Write, fate: str) -> None:
    write(f"import os, time\nclass Bad(nn.Module):\n    def __init__(self):\n        {fate}\n" + NET)
    start = time.monotonic()
    target = load_target("model.py", timeout=4)
    assert time.monotonic() - start < 15
    assert target.label == "model.py:Net"
    assert "`model.py:Bad`" in target.notes[0]


def test_many_candidates_in_one_process(write: Write) -> None:
    many = "".join(f"def net{i}():\n    return Net({i + 2})\n" for i in range(40))
    offered = labels(write, NET + many)
    assert len(offered) == 40  # net8 is the same as Net
    assert set(offered) == {f"net{i}" for i in range(40)}
