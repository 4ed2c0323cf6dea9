"""A person's recorded answers: `--reinit fc.**`, `--rename a=b`, `--choose state_dict_ema` ..."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ckptdoctor.errors import DecisionError

# kind -> what it means; the same words are CLI flags, `decisions=` texts and plan entries.
KINDS: dict[str, str] = {
    "reinit": "keep the model's initial values for the model keys matching PATTERN",
    "drop": "leave the checkpoint keys matching PATTERN unused",
    "rename": "FROM=TO: the checkpoint key (or pattern) FROM is the model's TO",
    "choose": "use the state dict at PATH of the checkpoint (`ema`, `raw`), or what a question offers",
    "accept": "accept a named risk, e.g. a rule's name",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer. ``str(decision)`` is the text that :func:`parse_decision` reads."""

    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind}={self.value}"


def parse_decision(text: str | Decision) -> Decision:
    """Read ``"reinit=fc.**"``. Raises :class:`DecisionError` on an unknown kind or an empty value."""
    if isinstance(text, Decision):
        return text
    kind, eq, value = text.partition("=")
    if kind not in KINDS or not eq or not value:
        kinds = ", ".join(f"{k}=..." for k in KINDS)
        raise DecisionError(f"`{text}` is not a decision; expected one of {kinds}")
    if kind == "rename" and not all(value.partition("=")):
        raise DecisionError(f"`{text}`: a rename is written rename=FROM=TO")
    return Decision(kind, value)


def parse_decisions(texts: Iterable[str | Decision]) -> tuple[Decision, ...]:
    """Read several; see :func:`parse_decision`."""
    return tuple(parse_decision(t) for t in texts)
