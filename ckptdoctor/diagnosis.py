"""The whole examination of one checkpoint for one model, as frozen data. No torch, no tensor bytes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.align.model import Alignment, Question, Verdict
from ckptdoctor.decisions import Decision
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import DecisionError, IncompatibleError, PlanError, UndecidedError
from ckptdoctor.keys import PatternError, matches, printable
from ckptdoctor.rules import Case, narrate
from ckptdoctor.rules.words import shell_words
from ckptdoctor.trees import ParamTree

if TYPE_CHECKING:
    from ckptdoctor.formats.base import Archive, StateDict
    from ckptdoctor.plan import Expansion, Plan
    from ckptdoctor.targets import Target

FORMAT = 1  # version of to_dict()


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What :func:`ckptdoctor.diagnose` found.

    ``verdict`` is ``"compatible"`` (loads strictly as it is), ``"repairable"`` (``plan`` is complete and
    safe), ``"undecided"`` (a person has to answer) or ``"incompatible"`` (another network).
    ``state_dict`` is the path of the chosen state dict, ``None`` when none was chosen.
    """

    archive: Archive
    target: Target
    verdict: Verdict
    diagnostics: tuple[Diagnostic, ...]
    state_dict: str | None = None
    source: ParamTree | None = None
    alignment: Alignment | None = None
    plan: Plan | None = None
    question: Question | None = None
    decisions: tuple[Decision, ...] = field(default=())
    expansion: Expansion | None = field(default=None, compare=False)  # the plan, worked out for the two trees

    @property
    def ok(self) -> bool:
        """Whether the checkpoint loads strictly as it is."""
        return self.verdict == "compatible"

    @cached_property
    def loaded(self) -> tuple[str, ...]:
        """The model keys that get values from the checkpoint."""
        found = self.alignment.matches.values() if self.alignment is not None else ()
        return tuple(m.target for m in found if m.sources and m.status in ("safe", "unsafe"))

    @property
    def coverage(self) -> float:
        """Share of the model's values (0 to 1) that come from the checkpoint; tied ones count once."""
        tree = self.target.tree
        return tree.subset(self.loaded).numel / tree.numel if tree.numel else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the same as ``ckptdoctor diagnose --format json``; ``format`` is its version."""
        matches = self.alignment.matches.values() if self.alignment is not None else ()
        unused = self.alignment.unused.values() if self.alignment is not None else ()
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "source": self._source_dict(),
            "target": {
                "model": self.target.label,
                "place": self.target.place,
                "keys": len(self.target.tree),
                "values": self.target.tree.numel,
                "tree": self.target.tree.digest,
            },
            "coverage": self.coverage,
            "diagnostics": [d.to_dict() for d in self.diagnostics],
            "plan": self.plan.to_dict() if self.plan is not None else None,
            "alignment": [m.to_dict() for m in matches],
            "unused": [{"source": u.source, "reason": u.reason, "decided": u.decided} for u in unused],
        }

    def _source_dict(self) -> dict[str, Any]:
        tree = self.source
        return {
            "file": self.archive.path,
            "format": self.archive.format,
            "state_dict": self.state_dict,
            "state_dicts": [sd.path for sd in self.archive.state_dicts],
            "keys": len(tree) if tree is not None else 0,
            "values": tree.numel if tree is not None else 0,
            "tree": tree.digest if tree is not None else None,
        }

    def raise_for_verdict(self) -> None:
        """Raise :class:`UndecidedError` or :class:`IncompatibleError` unless a safe plan exists.

        The message names the questions and the decisions that answer them, in Python's form.
        """
        if self.verdict == "incompatible":
            raise IncompatibleError("\n".join(self._refusal()), self.diagnostics)
        if self.verdict == "undecided" or self.plan is None:
            raise UndecidedError("\n".join(self._questions()), self.diagnostics)

    def _refusal(self) -> list[str]:
        head = f"{printable(self.archive.path)} does not belong to {printable(self.target.label)}"
        return [head] + [f"  {d.code} {d.title}" for d in self.diagnostics if d.severity == "error"]

    def _questions(self) -> list[str]:
        lines = [f"{printable(self.archive.path)} needs a decision for {printable(self.target.label)}:"]
        for d in self.diagnostics:
            if d.severity == "error" and d.fix is None:
                lines.append(f"  {d.code} {d.title}")
                lines += [
                    f"    {python_form(h.command)}" + (f"  # {h.text}" if h.text else "") for h in d.helps
                ]
        return lines

    def __repr__(self) -> str:
        return concise(self)


def concise(diagnosis: Diagnosis) -> str:
    """One line a finding, then the verdict; ``[*]`` marks what the plan repairs safely."""
    file = printable(diagnosis.archive.path)
    lines = [concise_line(file, d) for d in diagnosis.diagnostics]
    keys = len(diagnosis.target.tree)
    tally = f"{len(diagnosis.loaded)} of {keys} tensors, {percent(diagnosis.coverage)} of the values"
    return "\n".join(
        [*lines, f"{file}: {diagnosis.verdict} with {printable(diagnosis.target.label)}: {tally}"]
    )


def concise_line(file: str, diagnostic: Diagnostic) -> str:
    """``r50.pth: CKD101 [*] every key in the checkpoint starts with `module.```."""
    mark = "[*] " if diagnostic.fix is not None and diagnostic.fix.applicability == "safe" else ""
    return f"{file}: {diagnostic.code} {mark}{diagnostic.title}"


def percent(share: float) -> str:
    """A share as text that never rounds up to 100 % or down to 0 %."""
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    return f"{min(max(100 * share, 0.1), 99.9):.1f} %"


def python_form(command: str) -> str:
    """A flag as the ``decisions=`` argument: ``--reinit 'fc.**'`` is ``decisions=["reinit=fc.**"]``."""
    words = shell_words(command)
    texts = [
        f"{words[i][2:]}={words[i + 1]}" for i in range(0, len(words) - 1, 2) if words[i].startswith("--")
    ]
    return f"decisions={texts!r}" if texts and 2 * len(texts) == len(words) else command


@dataclass(frozen=True)
class Judged:
    """A case before it is put into words: what loading needs when all is well."""

    case: Case
    verdict: Verdict
    expansion: Expansion | None = None  # the plan, worked out for the two trees

    def narrated(self) -> Diagnosis:
        """What was found, in words."""
        case = self.case
        if case.target.kind is not None:
            from ckptdoctor.targets.live import placed

            case = replace(case, target=placed(case.target))
        return Diagnosis(
            archive=case.archive,
            target=case.target,
            verdict=self.verdict,
            diagnostics=narrate(case),
            state_dict=case.state_dict,
            source=case.source,
            alignment=case.alignment,
            plan=case.plan,
            question=case.question,
            decisions=case.decisions,
            expansion=self.expansion,
        )


def examine(
    archive: Archive,
    target: Target,
    decisions: Sequence[Decision] = (),
    *,
    reporter: Any = None,
) -> Diagnosis:
    """Choose the state dict, align it with the model, plan the repair, and word what was found."""
    return judge(archive, target, decisions, reporter=reporter).narrated()


def judge(
    archive: Archive,
    target: Target,
    decisions: Sequence[Decision] = (),
    *,
    reporter: Any = None,
) -> Judged:
    """:func:`examine` without the words."""
    decisions = tuple(decisions)
    check_patterns(decisions)
    chosen, alignment, question = _choose(archive, target, decisions, reporter)
    expansion, problem = None, ""
    if chosen is not None and alignment is not None and question is None:
        expansion, problem = _plan(archive, chosen, target, alignment, decisions)
    tree = chosen.tree if chosen is not None else None
    case = Case(
        archive=archive,
        target=target,
        state_dict=chosen.path if chosen is not None else None,
        source=tree,
        alignment=alignment,
        plan=expansion.plan if expansion is not None else None,
        question=question,
        decisions=decisions,
        problem=problem,
        foreign=foreign_devices(tree),
    )
    return Judged(case, _verdict(case, chosen), expansion)


def _choose(
    archive: Archive, target: Target, decisions: tuple[Decision, ...], reporter: Any
) -> tuple[StateDict | None, Alignment | None, Question | None]:
    from ckptdoctor.align.select import choose_state_dict

    candidates = {sd.path: sd for sd in archive.state_dicts if len(sd.tree)}
    if not candidates:
        return None, None, None
    pairs = [(path, sd.tree) for path, sd in candidates.items()]
    _check_choices(pairs, decisions)
    chosen = choose_state_dict(pairs, target.tree, decisions, reporter=reporter)
    if chosen.path is None:
        return None, None, chosen.question
    return candidates[chosen.path], chosen.alignment, chosen.question


def _check_choices(pairs: Sequence[tuple[str, ParamTree]], decisions: Sequence[Decision]) -> None:
    """A choice is a state dict's path, or a prefix of keys that a question offered."""
    for value in (d.value for d in decisions if d.kind == "choose"):
        if any(value == path or any(k.startswith(value + ".") for k in tree.specs) for path, tree in pairs):
            continue
        paths = ", ".join(f"`{printable(path)}`" for path, _ in pairs if path) or "none inside an envelope"
        raise DecisionError(f"choose={printable(value)}: the file has no such state dict; it has {paths}")


def check_patterns(decisions: Sequence[Decision]) -> None:
    """Raise :class:`DecisionError` for a pattern that cannot be read."""
    for decision in decisions:
        if decision.kind in ("reinit", "drop"):
            try:
                matches(decision.value, "")
            except PatternError as error:
                raise DecisionError(f"{decision.kind}: {error}") from None


def _plan(
    archive: Archive,
    chosen: StateDict,
    target: Target,
    alignment: Alignment,
    decisions: tuple[Decision, ...],
) -> tuple[Expansion | None, str]:
    if alignment.verdict == "incompatible":
        return None, ""
    from ckptdoctor.planner import make_expanded

    try:
        made = make_expanded(
            alignment,
            chosen.tree,
            target.tree,
            file=archive.path,
            state_dict_path=chosen.path,
            model_label=target.label,
            decisions=decisions,
        )
    except UndecidedError:
        return None, ""
    except PlanError as error:
        return None, str(error)
    return made, ""


def _verdict(case: Case, chosen: StateDict | None) -> Verdict:
    if case.alignment is None or chosen is None:
        return "undecided" if case.question is not None else "incompatible"
    if any(d.code == "CKD405" for d in case.archive.diagnostics):
        return "incompatible"  # its bytes are not what was saved
    verdict = case.alignment.verdict
    if verdict in ("undecided", "incompatible"):
        return verdict
    if case.plan is None or not case.plan.complete or case.question is not None:
        return "undecided"
    return "compatible" if verdict == "compatible" and _plainly_loadable(case, chosen) else "repairable"


def _plainly_loadable(case: Case, chosen: StateDict) -> bool:
    from ckptdoctor.formats.base import PLAIN_FORMATS

    # What torch.load would have to return for load_state_dict(strict=True) to work without any help.
    archive = case.archive
    return (
        chosen.path == ""
        and not chosen.note
        and archive.format in PLAIN_FORMATS
        and not archive.rest
        and not archive.unknown_globals
        and not case.foreign
    )


def foreign_devices(tree: ParamTree | None) -> tuple[str, ...]:
    """The device tags of the tree that this machine cannot restore, in order of appearance."""
    return tuple(tag for tag in tree.devices if not _have_device(tag)) if tree is not None else ()


def _have_device(tag: str) -> bool:
    kind, _, index = tag.partition(":")
    if kind in ("cpu", "meta", ""):
        return True
    # Without torch (which takes a second to import) the driver's device files tell as much.
    torch = sys.modules.get("torch")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch is not None else len(_nvidia_files())
        return int(index or 0) < found if (index or "0").isdigit() else False
    if kind == "mps":
        return sys.platform == "darwin"
    return False


def _nvidia_files() -> list[Path]:
    return [p for p in Path("/dev").glob("nvidia*") if p.name[6:].isdigit()]
