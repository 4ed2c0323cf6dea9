"""Random networks, random histories of their checkpoints, and the law that no load is silently wrong.

For the tests of ckptdoctor itself, and for yours: draw how a checkpoint of *your* model may have come to
be, and see that every load is right or refused. Needs hypothesis and torch, imported on first use.

- :func:`networks` draws runnable modules as data, :class:`Network`; ``network.build()`` makes one;
- :func:`histories` draws what happened to a state dict until it was a file, :class:`History`;
- :func:`write` writes that file and returns the truth, :func:`judge` loads it and compares.

>>> from hypothesis import given
>>> from ckptdoctor.testing import judge, networks, pairs
>>> @given(pairs())                                                     # doctest: +SKIP
... def test_never_silently_wrong(pair, tmp_path_factory):
...     assert not judge(*pair, tmp_path_factory.mktemp("case")).problems
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Group",
    "History",
    "Layer",
    "Network",
    "Outcome",
    "Truth",
    "histories",
    "judge",
    "judge_model",
    "networks",
    "pairs",
    "write",
]

_HOMES = {
    **dict.fromkeys(("Group", "Layer", "Network"), "recipes"),
    **dict.fromkeys(("History", "Truth"), "history"),
    **dict.fromkeys(("Outcome", "judge", "judge_model"), "judging"),
    **dict.fromkeys(("networks",), "drawing"),
    **dict.fromkeys(("histories", "pairs"), "mutating"),
    "write": "files",
}

if TYPE_CHECKING:
    from ckptdoctor.testing.drawing import networks
    from ckptdoctor.testing.files import write
    from ckptdoctor.testing.history import History, Truth
    from ckptdoctor.testing.judging import Outcome, judge, judge_model
    from ckptdoctor.testing.mutating import histories, pairs
    from ckptdoctor.testing.recipes import Group, Layer, Network


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
