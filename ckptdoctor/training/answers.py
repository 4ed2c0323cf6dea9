"""A person's answers about optimizer state, beside those of :mod:`ckptdoctor.decisions` about weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ckptdoctor.decisions import Decision, parse_decisions
from ckptdoctor.errors import DecisionError
from ckptdoctor.keys import PatternError, matches, printable

# kind -> what it means; the words of `decisions=` texts and of what a question offers.
KINDS: dict[str, str] = {
    "param-order": "checkpoint or model: whose order of parameters the unnamed optimizer state follows",
    "drop-state": "begin without optimizer state for the model or checkpoint keys matching PATTERN",
    "param-groups": "optimizer: keep the hyperparameters of the optimizer at hand",
    "state-dtype": "round: let optimizer state be rounded to the dtype of its parameters",
}
VALUES = {
    "param-order": ("checkpoint", "model"),
    "param-groups": ("optimizer",),
    "state-dtype": ("round",),
}


@dataclass(frozen=True, slots=True)
class Answers:
    """What was decided of optimizer state."""

    order: str = ""
    own_groups: bool = False
    round_dtype: bool = False
    dropped: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def drops(self, *keys: str) -> bool:
        """Whether one of the keys is to begin without state."""
        return any(matches(pattern, key) for pattern in self.dropped for key in keys)


def split_decisions(texts: Iterable[str | Decision]) -> tuple[tuple[Decision, ...], Answers]:
    """Those for the weights, and those for the optimizer. Raises :class:`DecisionError`."""
    others: list[str | Decision] = []
    ours: list[tuple[str, str]] = []
    for text in texts:
        kind, _, value = str(text).partition("=")
        if kind in KINDS:
            ours.append((kind, _checked(kind, value)))
        else:
            others.append(text)
    orders = {v for k, v in ours if k == "param-order"}
    if len(orders) > 1:
        raise DecisionError("param-order= is decided both ways; give one")
    return parse_decisions(others), Answers(
        order=next(iter(orders), ""),
        own_groups=any(k == "param-groups" for k, _ in ours),
        round_dtype=any(k == "state-dtype" for k, _ in ours),
        dropped=tuple(v for k, v in ours if k == "drop-state"),
        texts=tuple(f"{k}={v}" for k, v in ours),
    )


def _checked(kind: str, value: str) -> str:
    known = VALUES.get(kind)
    if known is not None and value not in known:
        raise DecisionError(f"{kind}={printable(value)}: expected {' or '.join(known)}")
    if known is None:
        try:
            matches(value, "")
        except PatternError as error:
            raise DecisionError(f"{kind}: {error}") from None
    return value
