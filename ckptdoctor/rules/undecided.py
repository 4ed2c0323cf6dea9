"""CKD204: more than one explanation is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckptdoctor.align.model import Choice, Match, Question
from ckptdoctor.diagnostics import Diagnostic, Help, Line
from ckptdoctor.keys import natural_key, numbers, printable, skeleton
from ckptdoctor.rules.base import Case, Example, Rule
from ckptdoctor.rules.naming import question_helps
from ckptdoctor.rules.words import count, flag, key_lines

CHOICES = 6  # of one key that are drawn


class UndecidedMatch(Rule):
    """More than one explanation is left for some keys, and the file cannot tell which is right.

    What it means
        Several tensors of equal shape could fill the same key, or a layout that shapes do not show
        (fused q/k/v, rotary halves, square matrices that may be transposed) crosses two families. Or a
        layer only fits with its axes exchanged (a matrix transposed while others like it are not, a
        kernel of 1 x 7 for one of 7 x 1): the same weights, kept in another way, or another network's.

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
                evidence=choice_lines(rest),
                why=_why(rest),
                helps=_rename_helps(rest[0]),
                keys=[m.target for m in rest],
            )

    def _asked(self, case: Case, question: Question) -> Diagnostic:
        assert case.alignment is not None
        matches = [case.alignment.matches[t] for t in question.targets if t in case.alignment.matches]
        open_ = [m for m in matches if m.choices]
        lines = choice_lines(open_)
        if not lines:
            lines = [*key_lines(question.sources, "-"), *key_lines(question.targets, "+")]
        helps = question_helps(case, question)
        if not helps and matches:
            helps = _rename_helps(matches[0])
        return self.finding(
            printable(question.title),
            place=case.model_place(question.targets[0] if question.targets else ""),
            evidence=lines,
            why=_why(open_),
            notes=[printable(n) for n in question.notes],
            helps=helps,
            keys=question.targets,
        )


def choice_lines(matches: Sequence[Match]) -> list[Line]:
    """Model keys and the choices for them.

    Keys with the same choices stand together, and so do keys that differ from their choices' keys in the
    same way (block 0 of the one in block 0 of the other, block 1 in block 1, ...).
    """
    lines: list[Line] = []
    for members in _grouped(matches):
        lines += key_lines([m.target for m in members], "+")
        ways = _ways(members)
        for n, (sources, ops) in enumerate(ways.items()):
            if n == CHOICES:
                lines.append(Line(f"or {count(len(ways) - n, 'other')}", "-"))
                break
            lines.append(Line(sources + _through(ops), "-"))
    return lines


def _grouped(matches: Sequence[Match]) -> list[list[Match]]:
    pools: dict[object, list[Match]] = {}
    for match in matches:
        pools.setdefault((skeleton(match.target), frozenset(match.choices)), []).append(match)
    families: dict[object, list[Match]] = {}
    for members in pools.values():
        alike = frozenset(
            (skeleton(m.target), tuple(_relative(m.target, c) for c in _sorted(m))) for m in members
        )
        families.setdefault(alike, []).extend(members)
    return list(families.values())


def _sorted(match: Match) -> list[Choice]:
    """The choices in an order that does not depend on how they were found."""
    return sorted(match.choices, key=lambda c: (c.ops, [natural_key(s) for s in c.sources]))


def _relative(target: str, choice: Choice) -> tuple[object, ...]:
    """A choice with the numbers of its keys as those of the model key, so that blocks compare equal."""
    own = numbers(target)
    out: list[object] = [choice.ops]
    for source in choice.sources:
        found = numbers(source)
        if len(found) == len(own):
            out.append((skeleton(source), tuple(a - b for a, b in zip(found, own, strict=True))))
        else:
            places = tuple(("as", own.index(n)) if n in own else ("is", n) for n in found)
            out.append((skeleton(source), places))
    return tuple(out)


def _ways(members: Sequence[Match]) -> dict[str, list[tuple[str, ...]]]:
    """Source keys as text -> the op chains through which they could fill the members."""
    rows = [_sorted(m) for m in members]
    ways: dict[str, list[tuple[str, ...]]] = {}
    for n, choice in enumerate(rows[0]):
        if all(row[n].sources == choice.sources for row in rows):
            texts = [printable(s) for s in choice.sources]
        else:
            columns = zip(*(row[n].sources for row in rows), strict=True)
            texts = [" ".join(line.text for line in key_lines(dict.fromkeys(c))) for c in columns]
        ways.setdefault(" + ".join(texts), []).append(choice.ops)
    return ways


def _through(chains: Sequence[tuple[str, ...]]) -> str:
    words = [f"through {printable(', '.join(ops))}" if ops else "as it is" for ops in chains]
    return "" if words == ["as it is"] else "   " + " or ".join(words)


def _why(matches: Sequence[Match]) -> str:
    """What the choices rest on, when it is the same for all."""
    reasons = {c.why for m in matches for c in m.choices}
    return printable(reasons.pop()) if len(reasons) == 1 else ""


def _rename_helps(match: Match) -> tuple[Help, ...]:
    plain = [c.sources[0] for c in match.choices if len(c.sources) == 1 and not c.ops]
    return tuple(Help(flag("rename", f"{s}={match.target}"), "declare this pair") for s in plain[:3])
