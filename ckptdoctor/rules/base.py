"""What a rule is: it reads one finished case and words what the engine found. It decides nothing."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from ckptdoctor.align.model import Alignment, Match, Question
from ckptdoctor.decisions import Decision
from ckptdoctor.diagnostics import Applicability, Diagnostic, Fix, Help, Line, Severity
from ckptdoctor.keys import printable
from ckptdoctor.rules.words import tree_words
from ckptdoctor.trees import ParamTree

if TYPE_CHECKING:
    from ckptdoctor.formats.base import Archive
    from ckptdoctor.plan import Plan
    from ckptdoctor.targets import Target


@dataclass(frozen=True)
class Case:
    """Everything a rule may read. Nothing in here is computed by a rule."""

    archive: Archive
    target: Target
    state_dict: str | None = None  # path inside the checkpoint; None: none was chosen
    source: ParamTree | None = None
    alignment: Alignment | None = None
    plan: Plan | None = None
    question: Question | None = None  # which state dict? (undecided)
    decisions: tuple[Decision, ...] = ()
    problem: str = ""  # why no plan could be made although nothing is undecided
    foreign: tuple[str, ...] = ()  # device tags of the source that this machine lacks

    @property
    def file(self) -> str:
        """The checkpoint's path, safe to print."""
        return printable(self.archive.path)

    @cached_property
    def source_note(self) -> str:
        """Grey words behind the checkpoint's place."""
        words = tree_words(self.source) if self.source is not None else ""
        return ", ".join(w for w in (self.archive.description, words) if w)

    def model_place(self, key: str = "") -> tuple[str, str]:
        """Place and grey words for a model key: ``("model.py:47", "ResNet.fc")``."""
        owner = self.target.tree.modules.get("", "")
        module = key.rpartition(".")[0]
        where = self.target.place_of(key) or self.target.label
        return printable(where), printable(".".join(p for p in (owner, module) if p))

    @cached_property
    def partners(self) -> Mapping[str, str]:
        """Checkpoint key -> the (last) model key that it fills."""
        return {s: m.target for m in self.matches.values() for s in m.sources}

    @cached_property
    def strips(self) -> Sequence[Mapping[str, str]]:
        """Checkpoint key -> its name, before the alignment's first strip and after each one."""
        from ckptdoctor.rules.strips import strip_names

        keys = self.source.specs if self.source is not None else ()
        found: list[Mapping[str, str]] = [dict(zip(keys, keys, strict=True))]
        for strip in self.alignment.strips if self.alignment is not None else ():
            found.append(strip_names(found[-1], strip, self.partners))
        return found

    @cached_property
    def stripped(self) -> Mapping[str, str]:
        """Checkpoint key -> its name once the wrappers' segments that the model lacks are taken out."""
        from ckptdoctor.rules.strips import strip_all

        if self.source is None or self.alignment is None:
            return {}
        partners, keys = self.partners, self.source.specs
        names = self.strips[-1]
        # A prefix that no wrapper is known for, and that makes no name fit, is part of a rename.
        known = [
            strip
            for strip in self.alignment.strips
            if strip.wrapper
            or any(names[k] == partners.get(k) for k in keys if k.startswith(strip.segment + "."))
        ]
        return strip_all(keys, known, partners) if len(known) < len(self.alignment.strips) else names

    @cached_property
    def mismatched(self) -> tuple[tuple[str, str], ...]:
        """(checkpoint key, model key) of equal name and different shape that nothing fills."""
        if self.alignment is None or self.source is None:
            return ()
        tree, pairs = self.target.tree, {}
        matches = self.alignment.matches.items()
        open_ = [t for t, m in matches if m.status in ("missing", "undecided") and not m.choices]
        back = {name: key for key, name in self.stripped.items()} if open_ else {}
        for target in open_:
            key = back.get(target)
            if key is not None and self.source[key].shape != tree[target].shape:
                pairs[target] = key
        for question in self.questions("shape"):
            if len(question.sources) == len(question.targets):
                for key, target in zip(question.sources, question.targets, strict=True):
                    if target in tree and key in self.source:
                        pairs.setdefault(target, key)
        return tuple((key, target) for target, key in pairs.items())

    @cached_property
    def renames(self) -> tuple[tuple[str, str], ...]:
        """Plain pairs whose names still differ after the strips: (checkpoint name, model key)."""
        if self.alignment is None:
            return ()
        stripped, tied = self.stripped, self.tied
        return tuple(
            (name, m.target)
            for m in self.alignment.matches.values()
            if m.status in ("safe", "unsafe")
            and len(m.sources) == 1
            and (name := stripped.get(m.sources[0], m.sources[0])) != m.target
            and m.target not in tied
        )

    @cached_property
    def tied(self) -> frozenset[str]:
        """Model keys that another name of the same tensor fills."""
        if self.alignment is None:
            return frozenset()
        out: set[str] = set()
        for group in self.target.tree.ties:
            matches = [self.alignment.matches[t] for t in group if t in self.alignment.matches]
            own = [m.target for m in matches if m.sources and self.stripped.get(m.sources[0]) == m.target]
            first = own[0] if own else (matches[0].target if matches else "")
            sources = {m.sources for m in matches if m.target == first}
            out.update(m.target for m in matches if m.target != first and m.sources in sources)
        return frozenset(out)

    def decided(self, kind: str, key: str) -> bool:
        """Whether a decision of this kind names the key."""
        from ckptdoctor.keys import matches

        return any(d.kind == kind and matches(d.value, key) for d in self.decisions)

    def questions(self, *kinds: str) -> list[Question]:
        """The alignment's open questions of these kinds."""
        found = self.alignment.questions if self.alignment is not None else ()
        return [q for q in found if q.kind in kinds]

    @property
    def matches(self) -> Mapping[str, Match]:
        """The alignment's matches by model key; none without an alignment."""
        return self.alignment.matches if self.alignment is not None else {}

    @cached_property
    def fits_somewhere(self) -> bool:
        """Whether anything of the checkpoint loads; if not, to keep or drop a part is no answer."""
        return any(m.sources and m.status in ("safe", "unsafe") for m in self.matches.values())

    def notes(self, *kinds: str) -> tuple[str, ...]:
        """What the questions of these kinds note, each once."""
        return tuple(dict.fromkeys(printable(n) for q in self.questions(*kinds) for n in q.notes))


@dataclass(frozen=True)
class Example:
    """A small case for a rule's documentation and test: keys with shapes on both sides.

    ``source`` and ``target`` map a key to a shape, or to ``(shape, {field: value})`` to set more of its
    spec; ``path`` is the state dict's place in the file; other fields are those of an archive.
    """

    source: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # other state dicts
    rest: Mapping[str, str] = field(default_factory=dict)
    diagnostics: tuple[tuple[str, Severity], ...] = ()  # as a format's reader would attach them
    decisions: Sequence[str] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    format: str = "torch-zip"


class Rule(ABC):
    """One code. The docstring is the text of ``ckptdoctor explain``; the examples are its test.

    The docstring has a first sentence and the sections *What it means*, *Why it matters*, *What to do*.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    VALID: ClassVar[tuple[Example, ...]] = ()
    INVALID: ClassVar[tuple[Example, ...]] = ()

    @abstractmethod
    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Word what the case holds of this rule's finding; nothing when it does not apply."""

    @classmethod
    def explain(cls) -> str:
        """The documentation of the rule, as written in its docstring."""
        return inspect.cleandoc(cls.__doc__ or "")

    def finding(
        self,
        title: str,
        *,
        place: tuple[str, str] = ("", ""),
        evidence: Sequence[Line] = (),
        why: str = "",
        notes: Sequence[str] = (),
        fix: tuple[str, Applicability] | None = None,
        helps: Sequence[Help] = (),
        keys: Sequence[str] = (),
        severity: Severity | None = None,
    ) -> Diagnostic:
        """A :class:`Diagnostic` of this rule."""
        return Diagnostic(
            code=self.code,
            name=self.name,
            severity=severity or self.severity,
            title=title,
            place=place[0],
            place_note=place[1],
            evidence=tuple(evidence),
            why=why,
            notes=tuple(notes),
            fix=Fix(*fix) if fix else None,
            helps=tuple(helps),
            keys=tuple(keys),
        )
