"""What other tools do with a pair, each written from its published behaviour.

A tool that raises claims nothing. A tool that loads part of the keys and warns about the rest claims what
it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from benchmarks.cases import Case, Fill
from benchmarks.scoring import Answer
from ckptdoctor.trees import ParamTree

NOTHING = Answer({}, refused=True)


def strict_load(source: ParamTree, target: ParamTree) -> Answer:
    """``model.load_state_dict(state_dict)`` (torch): the same keys with the same shapes, or an error."""
    return _strict({key: key for key in source.specs}, source, target)


def prefix_strip(source: ParamTree, target: ParamTree) -> Answer:
    """``torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state_dict, "module.")``, then strict.

    Every key that starts with the prefix loses it; the others stay.
    """
    return _strict({key.removeprefix("module."): key for key in source.specs}, source, target)


def _strict(names: Mapping[str, str], source: ParamTree, target: ParamTree) -> Answer:
    if names.keys() != target.specs.keys():
        return NOTHING
    if any(source[key].shape != target[name].shape for name, key in names.items()):
        return NOTHING
    return Answer({name: Fill((key,)) for name, key in names.items()}, content=True)


def order_zip(source: ParamTree, target: ParamTree) -> Answer:
    """timm's ``remap_state_dict``: the k-th tensor fills the k-th key, reshaped when the sizes agree.

    Raises when two sizes differ. A longer checkpoint is cut off by ``zip``; a shorter one leaves keys
    missing, which the strict load that follows refuses.
    """
    if len(source) < len(target):
        return NOTHING
    claims = {}
    for name, key in zip(target.specs, source.specs, strict=False):
        have, want = source[key].shape, target[name].shape
        if prod(have) != prod(want):
            return NOTHING
        ops = () if have == want else (f"reshape({','.join(map(str, want))})",)
        claims[name] = Fill((key,), ops)
    return Answer(claims, content=True)


def longest_suffix(source: ParamTree, target: ParamTree) -> Answer:
    """detectron2's ``align_and_update_state_dicts(..., c2_conversion=False)``.

    Each model key takes the longest checkpoint key that it equals or ends with (after a dot). Another
    shape is warned about and left; a checkpoint key that fits two model keys raises. What is left over is
    logged, and the load goes on.
    """
    claims: dict[str, Fill] = {}
    taken: set[str] = set()
    for name in sorted(target.specs):
        key = _longest(name, source)
        if key is None or source[key].shape != target[name].shape:
            continue
        if key in taken:
            return NOTHING
        taken.add(key)
        claims[name] = Fill((key,))
    return Answer(claims)


def _longest(name: str, source: ParamTree) -> str | None:
    while name not in source:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    return name


BASELINES: dict[str, Callable[[ParamTree, ParamTree], Answer]] = {
    "strict load": strict_load,
    "strip module.": prefix_strip,
    "order zip": order_zip,
    "longest suffix": longest_suffix,
}


def run_baseline(name: str, case: Case) -> Answer:
    """One baseline's answer to a case."""
    return BASELINES[name](case.source, case.target)
