"""CKD204: more than one explanation is left."""

from __future__ import annotations

from collections.abc import Iterator

from ckptdoctor.align.model import Match, Question
from ckptdoctor.diagnostics import Diagnostic, Help, Line
from ckptdoctor.keys import printable
from ckptdoctor.rules.base import Case, Example, Rule
from ckptdoctor.rules.naming import question_helps
from ckptdoctor.rules.words import count, flag, key_lines


class UndecidedMatch(Rule):
    """More than one explanation is left for some keys, and the file cannot tell which is right.

    What it means
        Several tensors of equal shape could fill the same key, or a layout that shapes do not show
        (fused q/k/v, rotary halves, square matrices that may be transposed) crosses two families.

    Why it matters
        Each of the choices loads without an error. The wrong one gives a model that computes nonsense,
        or worse, something almost right.

    What to do
        Decide with one of the flags that are offered, from what you know of how the file was made. The
        decision is recorded in the plan.
    """

    code, name, severity = "CKD204", "undecided-match", "error"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {"p.weight": (4, 4), "q.weight": (4, 4)},
            {"x.weight": (4, 4), "y.weight": (4, 4)},
        ),
    )
    OTHER_KINDS = ("envelope", "shape", "duplicate", "unexpected", "missing")

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding a question; undecided keys that no question names come last."""
        alignment = case.alignment
        if alignment is None or alignment.verdict == "incompatible":
            return
        named: set[str] = set()
        for question in alignment.questions:
            named.update(question.targets)
            if question.kind not in self.OTHER_KINDS:
                yield self._asked(case, question)
        rest = [m for m in alignment.matches.values() if m.status == "undecided" and m.target not in named]
        if rest:
            n = len(rest)
            yield self.finding(
                f"{count(n, 'key')} of the model {'has' if n == 1 else 'have'} more than one explanation",
                place=case.model_place(rest[0].target),
                evidence=[line for m in rest[:40] for line in choice_lines(m)],
                helps=_rename_helps(rest[0]),
                keys=[m.target for m in rest],
            )

    def _asked(self, case: Case, question: Question) -> Diagnostic:
        assert case.alignment is not None
        matches = [case.alignment.matches[t] for t in question.targets if t in case.alignment.matches]
        lines = [line for m in matches[:40] if m.choices for line in choice_lines(m)]
        if not lines:
            lines = [*key_lines(question.sources, "-"), *key_lines(question.targets, "+")]
        helps = question_helps(question)
        if not helps and matches:
            helps = _rename_helps(matches[0])
        return self.finding(
            printable(question.title),
            place=case.model_place(question.targets[0] if question.targets else ""),
            evidence=lines,
            notes=[printable(n) for n in question.notes],
            helps=helps,
            keys=question.targets,
        )


def choice_lines(match: Match) -> list[Line]:
    """The model key and each choice for it."""
    lines = [Line(printable(match.target), "+")]
    for choice in match.choices[:6]:
        ops = f"  through {printable(', '.join(choice.ops))}" if choice.ops else ""
        why = f"   ({printable(choice.why)})" if choice.why else ""
        lines.append(Line(f"{printable(' + '.join(choice.sources))}{ops}{why}", "-"))
    return lines


def _rename_helps(match: Match) -> tuple[Help, ...]:
    plain = [c.sources[0] for c in match.choices if len(c.sources) == 1 and not c.ops]
    return tuple(Help(flag("rename", f"{s}={match.target}"), "declare this pair") for s in plain[:3])
