"""What a plan is: steps in an order, the trees they were made for, and the result they must give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from ckptdoctor.casts import CastClass
from ckptdoctor.keys import Rule, expand_groups, has_wildcards, split, unfold
from ckptdoctor.keys.capture import capture
from ckptdoctor.keys.names import escape_char
from ckptdoctor.plan.checked import Check, Checked, Tagged

Safety = Literal["safe", "unsafe", "undecided"]


def _readable(text: str) -> str:
    """Half a surrogate pair fits in no text file; it stays visible as an escape."""
    if text.isascii():
        return text
    return "".join(escape_char(c) if 0xD800 <= ord(c) < 0xE000 else c for c in text)


def _glob(text: str) -> str:
    if not has_wildcards(text):
        unfold(text)
    return text


def _least(least: int) -> Check:
    def test(number: int) -> int:
        if type(number) is not int or number < least:
            raise ValueError(f"a whole number, {least} or more, is needed")
        return number

    return Check(test, {"minimum": least})


def _like(pattern: str, words: str) -> Check:
    def test(text: str) -> str:
        if not re.search(pattern, text):
            raise ValueError(words)
        return text

    return Check(test, {"pattern": pattern})


def _some(values: Sequence[object]) -> Sequence[object]:
    if not values:
        raise ValueError("at least one entry is needed")
    return values


Text = Annotated[str, Check(_readable)]
Name = Annotated[Text, Check(_some, {"minLength": 1})]
Prefix = Annotated[Text, _like(r"(?s)^.+\.$", "a prefix ends with a dot")]
Glob = Annotated[str, Check(_glob)]
Digest = Annotated[str, _like(r"^sha256:[0-9a-f]{64}$", "`sha256:` and 64 hexadecimal digits are needed")]
Count = Annotated[int, _least(0)]
AtLeastOne = Check(_some, {"minItems": 1})


@dataclass(frozen=True, kw_only=True)
class SourceRef(Checked):
    """The checkpoint: file as the user named it, which state dict in it, the digest of its tree."""

    file: Text
    state_dict: Text = ""
    tree: Digest
    keys: Count


@dataclass(frozen=True, kw_only=True)
class TargetRef(Checked):
    """The model: its label and the digest of its tree."""

    model: Text
    tree: Digest
    keys: Count


@dataclass(frozen=True, kw_only=True)
class _Step(Checked):
    keys: Annotated[int, _least(1)]
    why: Text = ""
    safety: Safety = "safe"


@dataclass(frozen=True, kw_only=True)
class StripPrefix(_Step):
    """Remove ``prefix`` (whole segments, with its last dot) from the names that begin with it."""

    op: Literal["strip_prefix"] = "strip_prefix"
    prefix: Prefix

    def rewrite(self, names: Iterable[str]) -> list[str]:
        """The names without the prefix."""
        prefix = self.prefix
        return [name.removeprefix(prefix) for name in names]


@dataclass(frozen=True, kw_only=True)
class StripSegment(_Step):
    """Remove ``segment`` (one or more whole segments) wherever it stands in a name."""

    op: Literal["strip_segment"] = "strip_segment"
    segment: Name

    def rewrite(self, names: Iterable[str]) -> list[str]:
        """The names without the segment; a name that would be empty stays."""
        gone = split(self.segment)
        return [self._without(gone, name) for name in names]

    def _without(self, gone: list[str], name: str) -> str:
        kept: list[str] = []
        parts = split(name)
        at = 0
        while at < len(parts):
            if parts[at : at + len(gone)] == gone:
                at += len(gone)
            else:
                kept.append(parts[at])
                at += 1
        return ".".join(kept) if kept else name


@dataclass(frozen=True, kw_only=True)
class Rename(_Step):
    """Names that fit ``from`` become ``to``; see :class:`ckptdoctor.keys.Rule`. ``keys`` counts names."""

    op: Literal["rename"] = "rename"
    from_: str
    to: str

    def __post_init__(self) -> None:
        super().__post_init__()
        Rule(self.from_, self.to)


@dataclass(frozen=True, kw_only=True)
class Transform(_Step):
    """Several tensors in, several out: each ``to`` is filled by its own chain in ``apply``.

    Braces in ``from`` list sources in order (``experts.{0..7}.w1.weight``). ``keys`` counts the model's
    keys that are filled. ``shared`` says that other steps may use the same tensors too.
    """

    op: Literal["transform"] = "transform"
    from_: Annotated[tuple[str, ...], AtLeastOne]
    to: Annotated[tuple[str, ...], AtLeastOne]
    apply: Annotated[tuple[str, ...], AtLeastOne]
    shared: bool = False

    @property
    def sources(self) -> list[str]:
        """The ``from`` patterns with their braces expanded, in the order that the ops see."""
        return [p for text in self.from_ for p in expand_groups(text)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.to) != len(self.apply):
            raise ValueError(
                f"`to` has {len(self.to)} entries and `apply` {len(self.apply)}; each `to` has its own chain"
            )
        first, *others = (capture(p) for p in (*self.sources, *self.to))
        for other in others:
            if not other.names <= first.names or (other.stars, other.deep) != (first.stars, first.deep):
                raise other.fail(f"its indices and wildcards are not those of `{first.text}`")


@dataclass(frozen=True, kw_only=True)
class Tie(_Step):
    """The model's keys ``to`` are the same tensors as its keys ``from`` (tied weights)."""

    op: Literal["tie"] = "tie"
    from_: str
    to: str

    def __post_init__(self) -> None:
        super().__post_init__()
        Rule(self.from_, self.to)


@dataclass(frozen=True, kw_only=True)
class Keep(_Step):
    """The model's keys ``to`` stay as they are: derived buffers that no checkpoint needs to hold."""

    op: Literal["keep"] = "keep"
    to: Annotated[tuple[Glob, ...], AtLeastOne]


@dataclass(frozen=True, kw_only=True)
class Reinit(_Step):
    """The model's keys ``to`` stay at their initial values because a person decided so."""

    op: Literal["reinit"] = "reinit"
    to: Annotated[tuple[Glob, ...], AtLeastOne]


@dataclass(frozen=True, kw_only=True)
class Drop(_Step):
    """The checkpoint's names ``from`` (after the strips) are left unused.

    With ``equals`` they are copies: applying refuses unless they hold the values of that name.
    """

    op: Literal["drop"] = "drop"
    from_: Annotated[tuple[Glob, ...], AtLeastOne]
    equals: Text | None = None


@dataclass(frozen=True, kw_only=True)
class Cast(_Step):
    """Tensors of the model's keys ``to`` change dtype; ``class`` says what that does to values."""

    op: Literal["cast"] = "cast"
    to: Annotated[tuple[Glob, ...], AtLeastOne]
    dtype_from: Text
    dtype_to: Text
    class_: CastClass


@dataclass(frozen=True, kw_only=True)
class Place(_Step):
    """Tensors were saved on these devices; they end where the model is. ``keys`` counts checkpoint keys.

    Devices are no part of a tree's digest: a file with the same tree and without these tags fits as well.
    """

    op: Literal["place"] = "place"
    devices: Annotated[tuple[Text, ...], AtLeastOne]


Step = Annotated[
    StripPrefix | StripSegment | Rename | Transform | Tie | Keep | Reinit | Drop | Cast | Place,
    Tagged("op"),
]


@dataclass(frozen=True, kw_only=True)
class OpenQuestion(Checked):
    """Something a person has to decide before the plan can run; ``flags`` answer it."""

    kind: Text
    title: Text
    flags: tuple[Text, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result(Checked):
    """How many keys end how. The model's: loaded (unchanged among them), kept, reinitialised, tied, open.

    The checkpoint's: unused (dropped by a step) and unexplained. ``open`` and ``unexplained`` are 0 in a
    plan that can run.
    """

    loaded: Count = 0
    unchanged: Count = 0
    kept: Count = 0
    reinitialised: Count = 0
    tied: Count = 0
    unused: Count = 0
    open: Count = 0
    unexplained: Count = 0


@dataclass(frozen=True, kw_only=True)
class Plan(Checked):
    """Ordered steps from one checkpoint's tree to one model's, bound to both by digest.

    Strip steps come first and rewrite the checkpoint's names one after the other. The others act at the
    same time on those names, and the first rename or drop that fits a name wins. A name in no step stays.
    ``warning`` names risks that no shape shows; they go with the plan into its receipts.
    """

    format: Literal[1] = 1
    source: SourceRef
    target: TargetRef
    step: tuple[Step, ...] = ()
    decision: tuple[Text, ...] = ()
    warning: tuple[Text, ...] = ()
    question: tuple[OpenQuestion, ...] = ()
    result: Result = field(default_factory=Result)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to decide, so that the plan can run."""
        return not (self.question or self.result.open or self.result.unexplained)

    @property
    def safe(self) -> bool:
        """Whether the plan is complete and every step is safe."""
        return self.complete and all(s.safety == "safe" for s in self.step)

    def __post_init__(self) -> None:
        super().__post_init__()
        seen_other = False
        for number, step in enumerate(self.step, 1):
            strip = isinstance(step, StripPrefix | StripSegment)
            if strip and seen_other:
                raise ValueError(f"step {number}: strip steps come before all others")
            seen_other = seen_other or not strip
