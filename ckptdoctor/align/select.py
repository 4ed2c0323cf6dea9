"""Which of a file's state dicts is meant: the one that explains the model best, or a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptdoctor.align.engine import run
from ckptdoctor.align.model import Alignment, Question
from ckptdoctor.align.reporter import Reporter
from ckptdoctor.decisions import Decision
from ckptdoctor.errors import DecisionError
from ckptdoctor.trees import ParamTree

_MOST = 12  # candidates aligned in full
_EQUAL = 0.98  # coverage, relative to the best, from which two candidates count as equal


@dataclass(frozen=True)
class Chosen:
    """The state dict's path and its alignment, or the question which one is meant.

    ``runners_up``: path and share of the model's keys that the others explain, best first.
    """

    path: str | None
    alignment: Alignment | None
    question: Question | None = None
    runners_up: tuple[tuple[str, float], ...] = ()


def choose_state_dict(
    candidates: Sequence[tuple[str, ParamTree]],
    target: ParamTree,
    decisions: Sequence[Decision] = (),
    reporter: Reporter | None = None,
) -> Chosen:
    """Align the candidates and take the one that explains most of the model.

    Two that explain it equally well are a question, answered by ``choose=PATH``; the first is
    aligned all the same, so that the rest of the diagnosis can be shown.
    """
    if not candidates:
        return Chosen(None, None)
    named = [d.value for d in decisions if d.kind == "choose"]
    chosen = [(path, tree) for path, tree in candidates if path and path in named]
    if len(chosen) > 1:
        raise DecisionError("choose= names several state dicts: " + ", ".join(p for p, _ in chosen))
    if chosen:
        path, tree = chosen[0]
        return Chosen(path, run(tree, target, _without(decisions, path), reporter))
    if len(candidates) == 1:
        path, tree = candidates[0]
        return Chosen(path, run(tree, target, decisions, reporter))
    ranked = _ranked(candidates, target)
    best_path, best_score = ranked[0]
    trees = dict(candidates)
    alignment = run(trees[best_path], target, decisions, reporter)
    equal = [p for p, score in ranked if score >= best_score * _EQUAL] if best_score else []
    question = _question(equal, target) if len(equal) > 1 else None
    return Chosen(best_path, alignment, question, tuple(ranked[1:]))


def _without(decisions: Sequence[Decision], path: str) -> list[Decision]:
    return [d for d in decisions if not (d.kind == "choose" and d.value == path)]


def _ranked(candidates: Sequence[tuple[str, ParamTree]], target: ParamTree) -> list[tuple[str, float]]:
    """Paths by the share of the model's keys that they explain; draws keep the file's order."""
    likely = sorted(candidates, key=lambda c: -_plausible(c[1], target))[:_MOST]
    scores = {path: _coverage(run(tree, target)) for path, tree in likely}
    order = {path: i for i, (path, _) in enumerate(candidates)}
    return sorted(scores.items(), key=lambda row: (-row[1], order[row[0]]))


def _plausible(tree: ParamTree, target: ParamTree) -> int:
    """How many of the model's shapes the candidate has, a cheap first look."""
    have: dict[tuple[int, ...], int] = {}
    for spec in tree.specs.values():
        have[spec.shape] = have.get(spec.shape, 0) + 1
    found = 0
    for spec in target.specs.values():
        if have.get(spec.shape, 0) > 0:
            have[spec.shape] -= 1
            found += 1
    return found


def _coverage(alignment: Alignment) -> float:
    explained = sum(bool(m.sources or m.choices) for m in alignment.matches.values())
    return explained / max(len(alignment.matches), 1)


def _question(paths: list[str], target: ParamTree) -> Question:
    shown = ", ".join(f"`{p or 'the top level'}`" for p in paths)
    return Question(
        "envelope",
        f"{len(paths)} state dicts in the file fit the model equally well: {shown}",
        tuple(target.specs),
        (),
        ("they may hold different values (raw and averaged weights, student and teacher)",),
        tuple((f"--choose {p}", f"load `{p}`") for p in paths if p),
    )
