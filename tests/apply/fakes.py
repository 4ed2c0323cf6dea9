"""Small stand-ins: an expansion made by hand, a reader over a dict that counts and can fail."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ckptdoctor.plan.fills import Fill


@dataclass
class Plan:
    fills: dict
    unused: dict = field(default_factory=dict)
    copies: dict = field(default_factory=dict)


class Source:
    """A reader; ``fail_at`` raises at the n-th read."""

    def __init__(self, tensors, fail_at=None, error=None):
        self.tensors, self.fail_at, self.error, self.reads = dict(tensors), fail_at, error, 0

    def __call__(self, key):
        self.reads += 1
        if self.fail_at is not None and self.reads > self.fail_at:
            raise self.error
        return self.tensors[key]


def load(target, *sources, ops=()):
    return Fill(target, "load", tuple(sources) or (target,), tuple(ops))


def tie(target, to):
    return Fill(target, "tie", (to,), (), tied_to=to)


def keep(target, kind="keep"):
    return Fill(target, kind)


def identity(model, **other):
    """Every key from the key of the same name, but for those named in ``other``."""
    fills = {k: load(k) for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    return Plan({k: other.get(k, f) for k, f in fills.items()})


def picture(model):
    """Everything that a failed load must leave as it was."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for name, t in table.items():
                if t is not None:
                    bits = (
                        None if t.is_meta else t.detach().clone().contiguous().reshape(-1).view(torch.uint8)
                    )
                    found[path, name] = (id(t), type(t), t.requires_grad, t.device, t.dtype, t.stride(), bits)
    return found


def same_picture(a, b):
    return a.keys() == b.keys() and all(
        a[k][:-1] == b[k][:-1]
        and ((a[k][-1] is None and b[k][-1] is None) or torch.equal(a[k][-1], b[k][-1]))
        for k in a
    )
