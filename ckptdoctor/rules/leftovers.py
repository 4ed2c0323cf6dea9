"""CKD205-207: derived buffers, duplicates, and what cannot be planned."""

from __future__ import annotations

from collections.abc import Iterator

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.keys import printable
from ckptdoctor.rules.base import Case, Example, Rule
from ckptdoctor.rules.naming import question_helps
from ckptdoctor.rules.words import count, flag_helps, key_lines


class DerivedBuffers(Rule):
    """Buffers of the model that are computed, not trained, are not in the checkpoint.

    What it means
        ``num_batches_tracked``, ``position_ids``, rotary tables and the like are derived from the
        model's configuration; older or other versions of the code did not save them.

    Why it matters
        ``load_state_dict`` reports them as missing although nothing that was trained is lost.

    What to do
        Nothing: the model's own values are right and the plan keeps them, key by key.
    """

    code, name, severity = "CKD205", "derived-buffers", "note"
    VALID = (Example({"a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {"bn.weight": (4,), "bn.bias": (4,), "bn.running_mean": (4,), "bn.running_var": (4,)},
            {
                "bn.weight": (4,),
                "bn.bias": (4,),
                "bn.running_mean": ((4,), {"kind": "buffer"}),
                "bn.running_var": ((4,), {"kind": "buffer"}),
                "bn.num_batches_tracked": ((), {"kind": "buffer", "dtype": "int64"}),
            },
            modules={"": "Net", "bn": "BatchNorm2d"},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """Keys that stay at the model's value without a decision."""
        if case.alignment is None or case.alignment.verdict == "incompatible":
            return
        kept = [
            m
            for m in case.alignment.matches.values()
            if m.status == "kept" and not case.decided("reinit", m.target)
        ]
        if not kept:
            return
        keys = [m.target for m in kept]
        reasons = list(dict.fromkeys(reason for m in kept for reason in m.evidence))
        n = len(keys)
        yield self.finding(
            f"{count(n, 'buffer')} of the model {'is' if n == 1 else 'are'} derived, not in the checkpoint",
            place=case.model_place(keys[0]),
            evidence=key_lines(keys, "+"),
            why=printable("; ".join(reasons[:2])),
            fix=(f"keep the model's own {'value' if n == 1 else 'values'}", "safe"),
            keys=keys,
        )


class DuplicateKeys(Rule):
    """Two keys of the checkpoint claim the same key of the model.

    What it means
        The file holds a tensor twice under names that become equal once the wrapper is stripped
        (``module.fc.weight`` beside ``fc.weight``).

    Why it matters
        Which of them was trained cannot be seen; taking the last one is a coin toss.

    What to do
        ``--drop`` the one that you do not want.
    """

    code, name, severity = "CKD206", "duplicate-keys", "error"
    VALID = (Example({"module.a.weight": (2, 3)}, {"a.weight": (2, 3)}),)
    INVALID = (
        Example(
            {"module.a.weight": (2, 3), "a.weight": (2, 3), "module.b.weight": (5, 3), "b.weight": (5, 3)},
            {"a.weight": (2, 3), "b.weight": (5, 3)},
        ),
    )

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """One finding a duplicate."""
        for question in case.questions("duplicate"):
            keys = question.sources
            helps = question_helps(case, question)
            if not helps and case.source is not None:
                helps = flag_helps("drop", keys[:1], case.source.specs, "leave this one unused")
            yield self.finding(
                printable(question.title),
                place=(case.file, case.source_note),
                evidence=[*key_lines(keys, "-"), *key_lines(question.targets, "+")],
                notes=[printable(n) for n in question.notes],
                helps=helps,
                keys=keys,
            )


class NoPlan(Rule):
    """Every key is matched, but no plan could be written for it.

    What it means
        The planner refused: two steps would collide, or a pattern cannot be inverted.

    Why it matters
        A repair that cannot be written down cannot be reviewed or repeated, so it is not done.

    What to do
        Declare the renames in question with ``--rename FROM=TO``; the message names them. This is
        worth a bug report.
    """

    code, name, severity = "CKD207", "no-plan", "error"
    VALID = (Example({"module.a.weight": (2, 3)}, {"a.weight": (2, 3)}),)

    def check(self, case: Case) -> Iterator[Diagnostic]:
        """The planner's own words."""
        if case.problem:
            yield self.finding(printable(case.problem), place=(case.file, case.source_note))
