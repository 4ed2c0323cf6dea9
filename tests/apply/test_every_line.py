"""An exception at any line of the code that loads: the model is as it was, or completely loaded."""

import os
import sys
from functools import partial

import pytest
import torch
from torch import nn

from ckptdoctor.loading import apply_to_model
from ckptdoctor.targets.module import snapshot
from tests.apply.fakes import Plan, Source, identity, load, picture, same_picture, tie

OURS = tuple(os.sep + os.path.join("ckptdoctor", p) for p in ("apply", "verify", "loading.py", "ops"))
ROLLBACK = ("_restore", "_restore_table", "__exit__", "uninterrupted", "_swap", "<lambda>")


class Bomb(BaseException):
    pass


def at_line(number):
    """A trace function that raises at the n-th line of ours; rollback itself runs with Ctrl-C held back."""
    count = 0

    def local(frame, event, arg):
        nonlocal count
        if event == "line" and frame.f_code.co_name not in ROLLBACK:
            count += 1
            if count == number:
                raise Bomb
        return local

    def begin(frame, event, arg):
        return local if any(part in frame.f_code.co_filename for part in OURS) else None

    return begin


def endings(begin, state):
    """How loads end in which an exception comes one line later each time, until one is not reached any more.

    ``begin()`` gives a new model and what loads ``state`` into it.
    """
    ended = []
    for number in range(1, 100_000):
        model, loading = begin()
        before = picture(model)
        sys.settrace(at_line(number))
        try:
            loading()
            break
        except Bomb:
            pass
        finally:
            sys.settrace(None)
        ended.append("untouched" if same_picture(before, picture(model)) else "loaded")
        if ended[-1] == "loaded":
            assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), number
    return ended


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Embedding(3, 2)
        self.b = nn.Linear(2, 3, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("count", torch.tensor(1))


def linear():
    model = nn.Linear(2, 2).half()
    return model, Plan({"weight": load("weight", ops=["transpose(0,1)"]), "bias": load("bias")})


def tied():
    return Tied(), identity(Tied(), **{"b.weight": tie("b.weight", "a.weight")})


def on_meta():
    with torch.device("meta"):
        return Tied(), identity(Tied(), **{"b.weight": tie("b.weight", "a.weight")})


@pytest.mark.parametrize("make", [linear, tied, on_meta])
def test_nothing_half_done_is_ever_left(make):
    made, _ = make()
    state = {k: torch.ones(v.shape).to(v.dtype) * 2 for k, v in made.state_dict().items()}

    def begin():
        model, plan = make()
        return model, partial(apply_to_model, plan, Source(state), model, snapshot(model))

    ended = endings(begin, state)
    assert torch.is_grad_enabled(), "nothing of torch's own state is left changed"
    assert ended.count("untouched") > 200, "the bombs went off"
    assert ended == sorted(ended, reverse=True), "once it is committed it stays"
