"""A person's recorded answers: `--reinit fc.**`, `--rename a=b`, `--choose state_dict_ema` ..."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan

from ckptdoctor.errors import DecisionError
from ckptdoctor.facts import SPELLINGS, Fact, canonical, is_number

# kind -> what it means; the same words are CLI flags, `decisions=` texts and plan entries.
KINDS: dict[str, str] = {
    "reinit": "keep the model's initial values for the model keys matching PATTERN",
    "drop": "leave the checkpoint keys matching PATTERN unused",
    "rename": "FROM=TO: the checkpoint key (or pattern) FROM is the model's TO",
    "op": "PATTERN=OPS: make the model keys matching PATTERN through these tensor ops",
    "value": "NAME=N: a number that shapes do not show, e.g. num_attention_heads=32",
    "choose": "use the state dict at PATH of the checkpoint (`ema`, `raw`), or what a question offers",
    "accept": "accept a named risk, e.g. a rule's name",
}

# How the value of a decision is written where it has two parts.
FORMS = {"rename": "FROM=TO", "op": "PATTERN=OPS", "value": "NAME=N"}


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
    if kind in FORMS and not all(value.partition("=")):
        raise DecisionError(f"`{text}`: written {kind}={FORMS[kind]}")
    if kind == "value":
        fact_of(value)
    return Decision(kind, value)


def fact_of(text: str) -> Fact:
    """Read ``"num_attention_heads=32"``. Raises :class:`DecisionError` on an unknown name or no number."""
    spelt, _, number = text.partition("=")
    name = canonical(spelt.strip())
    if name is None:
        raise DecisionError(f"value={text}: `{spelt}` is no known fact; known are {', '.join(SPELLINGS)}")
    try:
        value = float(number)
    except ValueError:
        value = nan
    if not is_number(value):
        raise DecisionError(f"value={text}: `{number}` is no number")
    return Fact(name, int(value) if value.is_integer() else value, "decided by `--value`")


def parse_decisions(texts: Iterable[str | Decision]) -> tuple[Decision, ...]:
    """Read several; see :func:`parse_decision`."""
    return tuple(parse_decision(t) for t in texts)
