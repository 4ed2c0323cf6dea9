"""CKD201-203: names. Renamed, missing and unexpected keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ckptdoctor.align.model import Question
from ckptdoctor.diagnostics import Applicability, Diagnostic, Help, Line
from ckptdoctor.keys import matches, printable
from ckptdoctor.rules.base import Case, Example, Rule
from ckptdoctor.rules.renames import RenameGroup, rename_groups
from ckptdoctor.rules.strips import added_segment
from ckptdoctor.rules.words import count, flag_helps, key_lines, quoted, shell_words


def question_helps(case: Case, question: Question) -> tuple[Help, ...]:
    """The flags that answer a question; those that fit nothing in the checkpoint are left out."""
    return tuple(Help(printable(f), printable(words)) for f, words in question.flags if _fits(case, f))


def _fits(case: Case, answer: str) -> bool:
    words = shell_words(answer)
    if words[:1] != ["--drop"] or case.source is None:
        return bool(words)
    return all(any(matches(pattern, key) for key in case.source.specs) for pattern in words[1::2])


class RenamedKeys(Rule):
    """The same tensors have other names in the model.

    What it means
        The network was written twice, or its attributes were renamed: ``layer1.0.conv1`` here,
        ``stages.0.blocks.0.conv1`` there; ``nn.Sequential`` by index here, by name there.

    Why it matters
        ``load_state_dict`` goes by names only. Copying by position instead breaks silently as soon as the
        order differs.

    What to do
        Read the pairs. The engine calls a rename safe only when shapes, names and order leave one
        explanation; two equal-shaped tensors told apart by their names rest on those names.
        ``--rename FROM=TO`` declares a pair yourself.
    """

    code, name, severity = "CKD201", "renamed-keys", "error"
    VALID = (
        Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),
        Example({"module.a.weight": (2, 3)}, {"a.weight": (2, 3)}),
    )
    INVALID = (
        Example(
            {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)},
            {"fc1.weight": (4, 3), "fc1.bias": (4,), "fc2.weight": (2, 4), "fc2.bias": (2,)},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding for all renames; each rule of the plan is a pair of lines."""
        if case.alignment is None:
            return
        # What an op makes has its names under CKD302: a part of `qkv` that is `q` now is not a rename.
        moved = {t for t, match in case.alignment.matches.items() if match.ops in ((), ("copy",))}
        pairs = [(s, t) for s, t in case.renames if t in moved and not added_segment(s, t)]
        if not pairs:
            return
        groups = rename_groups(case, pairs)
        n = len(pairs)
        yield self.finding(
            f"{count(n, 'key')} {'has' if n == 1 else 'have'} another name in the model",
            place=case.model_place(pairs[0][1]),
            evidence=_drawn(groups),
            why=_why(case, pairs, groups[0].why if len(groups) == 1 else ""),
            fix=(_fix(groups, n), _worst(case, pairs)),
            keys=[t for _, t in pairs],
        )


def _drawn(groups: Sequence[RenameGroup]) -> list[Line]:
    return [line for g in groups for line in (Line(printable(g.source), "-"), Line(printable(g.target), "+"))]


def _fix(groups: Sequence[RenameGroup], n: int) -> str:
    if len(groups) == 1:
        group = groups[0]
        return f"rename {quoted(group.source)} to {quoted(group.target)}"
    return f"rename {count(n, 'key')} by {count(len(groups), 'rule')}"


def _why(case: Case, pairs: Sequence[tuple[str, str]], planned: str) -> str:
    if planned:
        return printable(planned)
    assert case.alignment is not None
    words: dict[str, int] = {}
    counted = Counter(case.alignment.matches[target].evidence[:3] for _, target in pairs)
    for reasons, n in counted.items():
        for reason in reasons:
            words[reason] = words.get(reason, 0) + n
    best = sorted(words, key=lambda w: -words[w])[:2]
    return printable("; ".join(best))


def _worst(case: Case, pairs: Sequence[tuple[str, str]]) -> Applicability:
    assert case.alignment is not None
    unsafe = any(case.alignment.matches[t].status != "safe" for _, t in pairs)
    return "unsafe" if unsafe else "safe"


class MissingKeys(Rule):
    """The model has keys for which the checkpoint holds nothing.

    What it means
        A part of the model is new (a head, an adapter), or the file is from a smaller variant or was
        saved incompletely.

    Why it matters
        Loaded with ``strict=False`` these parts keep their random initial values, and nothing says so.

    What to do
        If the part is meant to start fresh, say it: ``--reinit 'head.**'`` is recorded in the plan. If
        it is there under another name, declare it: ``--rename FROM=TO``.
    """

    code, name, severity = "CKD202", "missing-keys", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {"a.weight": (2, 3), "b.weight": (5, 7)},
            {"a.weight": (2, 3), "b.weight": (5, 7), "head.weight": (9, 11), "head.bias": (9,)},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding for what is missing, one note for what a decision keeps."""
        if case.alignment is None or case.alignment.verdict == "incompatible":
            return
        matches = case.alignment.matches
        shown = {t for _, t in case.mismatched}
        missing = [t for t, m in matches.items() if m.status == "missing" and t not in shown]
        if missing:
            yield self._missing(case, missing)
        kept = [t for t, m in matches.items() if m.status == "kept" and case.decided("reinit", t)]
        if kept:
            yield self.finding(
                f"{count(len(kept), 'key')} of the model {_keep(kept)}, as you decided",
                severity="note",
                place=case.model_place(kept[0]),
                evidence=key_lines(kept, "+", case.target.tree.specs),
                keys=kept,
            )

    def _missing(self, case: Case, missing: list[str]) -> Diagnostic:
        n = len(missing)
        helps: tuple[Help, ...] = ()
        if case.fits_somewhere:
            # A pattern may take in derived buffers: they keep the model's values either way.
            rest = [t for t, m in case.matches.items() if m.status != "kept"]
            helps = flag_helps("reinit", missing, rest, "keep the model's initial values")
        known = [h for q in case.questions("missing") for h in question_helps(case, q)]
        others = [h for h in known if not h.command.startswith("--reinit")]
        return self.finding(
            f"{count(n, 'key')} of the model {'is' if n == 1 else 'are'} not in the checkpoint",
            place=case.model_place(missing[0]),
            evidence=key_lines(missing, "+", case.target.tree.specs),
            notes=tuple(
                dict.fromkeys(printable(note) for q in case.questions("missing") for note in q.notes)
            ),
            helps=(*helps, *others),
            keys=missing,
        )


def _keep(keys: Sequence[str]) -> str:
    return "keeps its initial value" if len(keys) == 1 else "keep their initial values"


class UnexpectedKeys(Rule):
    """The checkpoint holds keys that the model does not have.

    What it means
        A part of the trained network was removed or belongs to something else in the file: a
        classifier, an auxiliary head, a loss with weights.

    Why it matters
        ``load_state_dict`` refuses them. Ignored wholesale (``strict=False``), a real difference between
        two architectures looks the same as a harmless left-over.

    What to do
        ``--drop 'aux.**'`` leaves them unused and records it. If one of them is a renamed part of the
        model, declare it with ``--rename FROM=TO``.
    """

    code, name, severity = "CKD203", "unexpected-keys", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {"a.weight": (2, 3), "aux.weight": (9, 11), "aux.bias": (9,)},
            {"a.weight": (2, 3)},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding for what needs a decision, one note for what is known to be dispensable."""
        alignment, source = case.alignment, case.source
        if alignment is None or source is None or alignment.verdict == "incompatible":
            return
        asked = {s for q in alignment.questions if q.kind not in ("unexpected", "missing") for s in q.sources}
        asked |= {s for m in alignment.matches.values() for c in m.choices for s in c.sources}
        asked |= {s for s, _ in case.mismatched}
        open_ = [k for k, u in alignment.unused.items() if not u.decided and k not in asked]
        done = [k for k, u in alignment.unused.items() if u.decided]
        place = (case.file, case.source_note)
        if open_:
            n = len(open_)
            yield self.finding(
                f"{count(n, 'key')} of the checkpoint {'is' if n == 1 else 'are'} not in the model",
                place=place,
                evidence=key_lines(open_, "-", source.specs),
                notes=case.notes("unexpected"),
                helps=flag_helps("drop", open_, source.specs, "leave unused") if case.fits_somewhere else (),
                keys=open_,
            )
        if done:
            reasons = sorted({alignment.unused[k].reason for k in done})
            yield self.finding(
                f"{count(len(done), 'key')} of the checkpoint {'stays' if len(done) == 1 else 'stay'} unused",
                severity="note",
                place=place,
                evidence=key_lines(done, "-", source.specs),
                why=printable("; ".join(reasons[:3])),
                fix=(f"leave out {count(len(done), 'key')}", "safe"),
                keys=done,
            )
