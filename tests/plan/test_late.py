"""A plan's digests are worked out when somebody asks for them, and nobody can tell."""

import copy
import pickle
from dataclasses import replace

import pytest

from ckptdoctor.align import align
from ckptdoctor.plan import Plan
from ckptdoctor.plan.checked import late
from ckptdoctor.plan.model import SourceRef
from ckptdoctor.planner import make_plan
from ckptdoctor.trees import ParamTree, TensorSpec

SOURCE = ParamTree({"module.weight": TensorSpec((3, 2)), "module.bias": TensorSpec((3,))})
TARGET = ParamTree({"weight": TensorSpec((3, 2)), "bias": TensorSpec((3,))})


def made() -> Plan:
    return make_plan(align(SOURCE, TARGET), SOURCE, TARGET, file="ddp.pth", model_label="Linear")


def digests(plan: Plan) -> tuple[str, str]:
    return plan.source.tree, plan.target.tree


@pytest.mark.parametrize(
    "again",
    [
        lambda plan: plan,
        lambda plan: pickle.loads(pickle.dumps(plan)),
        copy.copy,
        copy.deepcopy,
        lambda plan: replace(plan, source=replace(plan.source, file="other.pth")),
    ],
    ids=["itself", "pickled", "copied", "deeply", "replaced"],
)
def test_digests_are_those_of_the_trees(again) -> None:
    assert digests(again(made())) == (SOURCE.digest, TARGET.digest)


def test_whoever_was_asked_is_the_same_as_who_was_not() -> None:
    asked, fresh = made(), made()
    digests(asked)
    assert asked == fresh and hash(made()) == hash(asked) and repr(made()) == repr(asked)
    assert made().to_dict() == asked.to_dict()


def test_a_late_value_is_checked_like_any_other() -> None:
    ref = SourceRef(file="a.pth", tree=late(lambda: "md5:1"), keys=1)
    with pytest.raises(ValueError, match="`tree`: `sha256:` and 64 hexadecimal digits"):
        _ = ref.tree
    with pytest.raises(AttributeError, match="no attribute 'digest'"):
        _ = ref.digest
