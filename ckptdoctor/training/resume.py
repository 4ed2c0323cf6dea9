"""Resuming a training: weights, moments, schedule and counters through one plan, or nothing at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptdoctor.decisions import Decision
from ckptdoctor.diagnosis import Diagnosis, examine, python_form
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import ApplyError, CkptDoctorError, UndecidedError
from ckptdoctor.keys import printable
from ckptdoctor.training.answers import Answers, split_decisions
from ckptdoctor.training.average import resolve
from ckptdoctor.training.carry import Carry, carry
from ckptdoctor.training.ema import averaged, for_average, without_counters
from ckptdoctor.training.findings import finding
from ckptdoctor.training.groups import hyperparameters
from ckptdoctor.training.layouts import Role
from ckptdoctor.training.live import bare_optimizer, by_name, listed_params, optimizer_kind, paired
from ckptdoctor.training.naming import Sides, name_params
from ckptdoctor.training.receipt import OptimizerReceipt, ResumeReceipt
from ckptdoctor.training.restore import OptimizerWork
from ckptdoctor.training.saved import read_saved
from ckptdoctor.training.schedule import StateWork, absent, schedule_work
from ckptdoctor.training.source import NotPlain, Part, Training, open_training, optimizers, plain
from ckptdoctor.training.staging import dtype_problems
from ckptdoctor.training.undo import Undo

if TYPE_CHECKING:
    import torch

    from ckptdoctor.formats.base import StateDict
    from ckptdoctor.plan.expand import Expansion
    from ckptdoctor.receipt import Receipt
    from ckptdoctor.targets import Target


@dataclass(frozen=True)
class Weights:
    """One module and what the plan makes of a state dict for it."""

    module: torch.nn.Module
    found: Diagnosis
    chosen: StateDict
    expansion: Expansion

    def load(self, device: Any = None, then: Callable[[], None] | None = None) -> Receipt:
        """Fill the module and verify it, ``then`` inside of the same transaction."""
        from ckptdoctor.formats.tensors import TensorReader
        from ckptdoctor.loading import apply_to_model

        archive = self.found.archive
        receipt = apply_to_model(
            self.expansion,
            TensorReader(archive, self.chosen),
            self.module,
            self.found.target.tree,
            fresh=lambda: TensorReader(archive, self.chosen),
            device=device,
            source_versions=self.chosen.tree.versions,
            accept=tuple(d.value for d in self.found.decisions if d.kind == "accept"),
            source=archive.path,
            state_dict=self.chosen.path,
            target=type(self.module).__name__,
            then=then,
        )
        return replace(receipt, warnings=self.found.plan.warning if self.found.plan is not None else ())


def auto_resume(
    path: str | os.PathLike[str],
    model: torch.nn.Module,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    ema: torch.nn.Module | None = None,
    decisions: Iterable[str | Decision] = (),
    reporter: Any = None,
) -> ResumeReceipt:
    """Continue a training from a checkpoint whose names, order or layout may not be those of today's code.

    ``path`` is a file or a folder (a transformers Trainer's, accelerate's). The model is loaded as by
    :func:`ckptdoctor.auto_load`; the optimizer's state follows its parameters through the same plan (names,
    splits, joins, transposes), into the order and the groups of the optimizer at hand. ``optimizer``,
    ``scheduler`` and ``scaler`` may each be one object, a list, or a dict by name; ``ema`` is a module that
    gets the averaged weights. What is not given is not restored, and the receipt says so; what is given and
    not in the file is an error.

    ``decisions`` are those of ``auto_load`` and: ``param-order=checkpoint`` or ``=model`` (whose order state
    without names follows), ``drop-state=PATTERN`` (model or checkpoint keys that begin without state),
    ``param-groups=optimizer`` (keep its own hyperparameters), ``state-dtype=round``.

    All or nothing: on any exception model, EMA, optimizer, scheduler and scaler are as they were. Raises
    :class:`~ckptdoctor.errors.UndecidedError` (questions, with the decisions that answer them),
    ``IncompatibleError``, ``ReadError`` or ``ApplyError``.

    >>> receipt = auto_resume("last.ckpt", model, optimizer, scheduler)   # doctest: +SKIP
    >>> receipt.epoch                                                     # doctest: +SKIP
    12
    """
    parsed, answers = split_decisions(decisions)
    training = open_training(path)
    archive, parsed = resolve(training.archive, parsed)
    training = replace(training, archive=archive)
    weights = examined(training, model, parsed, "model", reporter)
    averaged = examined(training, ema, parsed, "ema", reporter) if ema is not None else None
    work, problems = optimizer_work(training, weights, optimizer, answers)
    hypers = {w.name: w.hyper for w in work}
    things: list[StateWork] = []
    for role, given in (("scheduler", scheduler), ("scaler", scaler)):
        more, wrong = schedule_work(training, role, given, hypers)
        things += more
        problems += wrong
    if problems:
        raise UndecidedError(question_text(training.file, problems), problems)
    staged = [(w, w.stage()) for w in work]
    entries = entries_of(training)
    receipts: list[Receipt] = []

    def rest() -> None:
        for one, state in staged:
            one.load(state)
            one.verify()
        for thing in things:
            thing.load()

    def with_ema() -> None:
        if averaged is not None:
            receipts.append(averaged.load(then=rest))
        else:
            rest()

    objects = [*(w.optimizer for w in work), *(t.thing for t in things)]
    with _all_back(objects):
        loaded = weights.load(then=with_ema)
    return ResumeReceipt(
        model=loaded,
        ema=receipts[0] if receipts else None,
        optimizers=tuple(_optimizer_receipt(w) for w in work),
        restored=tuple(dict.fromkeys(["model", *(["ema"] if receipts else []), *_roles(work, things)])),
        epoch=training.value("epoch"),
        iteration=training.value("iteration"),
        entries=entries,
        layout=training.layout.name,
        decisions=(*map(str, parsed), *answers.texts),
        notes=tuple(_notes(training, optimizer, scheduler, scaler, ema)),
    )


class _all_back(Undo):
    """:class:`Undo`, with every error that is not ours as an :class:`ApplyError`."""

    def __exit__(self, kind: Any, error: BaseException | None, tb: Any) -> None:
        super().__exit__(kind, error, tb)
        if isinstance(error, Exception) and not isinstance(error, CkptDoctorError):
            raise ApplyError(
                f"resuming failed; model, optimizer, scheduler and scaler are as they were. "
                f"{type(error).__name__}: {printable(str(error))}"
            ) from error


def _roles(work: Sequence[OptimizerWork], things: Sequence[StateWork]) -> list[str]:
    return [*("optimizer" for _ in work), *(t.role for t in things)]


def examined(
    training: Training,
    module: torch.nn.Module,
    decisions: tuple[Decision, ...],
    role: Role,
    reporter: Any = None,
) -> Weights:
    """The plan for one module, with the state dict that the layout's table has for it. Raises as diagnose."""
    from ckptdoctor.plan import expand
    from ckptdoctor.targets.live import live_target

    target = live_target(module)
    if role == "ema":
        chosen = for_average(training, averaged(training, decisions), target.tree)
        found = _examine(training, target, chosen, reporter)
    else:
        found = _examine(training, target, decisions, reporter)
        trained = training.paths("model")
        in_doubt = found.question is not None or found.state_dict in training.paths("ema")
        if in_doubt and trained and not any(d.kind == "choose" for d in decisions):
            # To go on means from what was trained; the averages are for `ema=`.
            found = _examine(training, target, (*decisions, Decision("choose", trained[0])), reporter)
    found.raise_for_verdict()
    assert found.plan is not None and found.state_dict is not None  # raise_for_verdict
    state_dict = training.archive[found.state_dict]
    return Weights(module, found, state_dict, expand(found.plan, state_dict.tree, found.target.tree))


def _examine(training: Training, target: Target, decisions: tuple[Decision, ...], reporter: Any) -> Diagnosis:
    more = without_counters(training, decisions, target.tree)
    return examine(training.archive, target, (*decisions, *more), reporter=reporter)


def optimizer_work(
    training: Training, weights: Weights, given: Any, answers: Answers
) -> tuple[list[OptimizerWork], list[Diagnostic]]:
    """Every optimizer at hand with its carried state, and everything that is open about it."""
    things = by_name(given, "optimizer")
    part = training.parts.get("optimizer")
    if not things:
        return [], []
    if part is None:
        return [], [absent(training, "optimizer")]
    states = optimizers(part.value)
    if not states:
        return [], [_no_optimizer(part)]
    names = paired(things, states)
    if names is None:
        words = f"{len(things)} optimizers are given, the checkpoint has {len(states)}: {', '.join(states)}"
        return [], [finding("CKD609", words, place=part.where, helps=[("optimizer=[...]", "give as many")])]
    work, problems = [], []
    for name, thing in things.items():
        made, wrong = _one_optimizer(
            training, weights, thing, answers, part, states[names[name]], names[name]
        )
        problems += wrong
        if made is not None:
            work.append(made if len(things) == 1 else replace(made, name=name))
    return work, problems


def _one_optimizer(
    training: Training,
    weights: Weights,
    thing: Any,
    answers: Answers,
    part: Part,
    state: Mapping[str, Any],
    label: str,
) -> tuple[OptimizerWork | None, list[Diagnostic]]:
    optimizer = bare_optimizer(thing)
    saved = read_saved(part, state, label)
    if isinstance(saved, str):
        return None, [_no_optimizer(part, saved)]
    kind = optimizer_kind(optimizer)
    sides = sides_of(training, weights, listed_params(optimizer, weights.module))
    named = name_params(saved, sides, answers)
    if saved.quantized and answers.dropped != ("**",):
        return None, [_quantized(part)]
    carried = carry(saved, named, sides, answers, kind)
    if carried.problems:
        return None, list(carried.problems)
    hyper = hyperparameters(carried, optimizer.param_groups, answers, kind)
    problems = [*hyper.problems, *dtype_problems(carried, sides, answers)]
    return OptimizerWork("", optimizer, carried, hyper, sides), problems


def sides_of(training: Training, weights: Weights, listed: tuple[tuple[str, ...], ...]) -> Sides:
    """What naming and carrying need of the plan."""
    fills = weights.expansion.fills
    target = weights.found.target.tree
    ways = {
        key: (fill.sources, fill.ops)
        for key, fill in fills.items()
        if fill.kind in ("load", "tie") and target[key].kind != "buffer"
    }
    own = frozenset(k for k, fill in fills.items() if fill.kind in ("keep", "reinit"))
    return Sides(weights.chosen.tree, target, ways, own, listed, recorded_kinds(training, weights.chosen))


def recorded_kinds(training: Training, chosen: StateDict) -> dict[str, str]:
    """Which keys are parameters, where the file itself records it (those of ``save_checkpoint`` do)."""
    content = training.archive.content
    root = content.value if content is not None else None
    ours = root.get("ckptdoctor") if isinstance(root, Mapping) else None
    params = ours.get("params") if isinstance(ours, Mapping) else None
    if not isinstance(params, list) or chosen.path != "state_dict":
        return {}
    known = set(map(str, params))
    return {k: "param" if k in known else "buffer" for k in chosen.tree.specs}


def _no_optimizer(part: Part, words: str = "") -> Diagnostic:
    return finding(
        "CKD608",
        "the optimizer entry is not the state of a torch.optim optimizer",
        place=part.where,
        why=words or "torch.optim saves a dict of `state` and `param_groups`",
        helps=[("optimizer=None", "resume without it")],
    )


def _quantized(part: Part) -> Diagnostic:
    return finding(
        "CKD608",
        "the optimizer state is 8-bit codes with block scales (bitsandbytes)",
        place=part.where,
        why="codes and scales run over blocks of values in the old layout, and mean nothing in another",
        helps=[("--drop-state '**'", "begin with a fresh optimizer")],
    )


def question_text(file: str, problems: Sequence[Diagnostic]) -> str:
    """Everything that is open, each with the decision that answers it, in Python's form."""
    lines = [f"{file} needs a decision to be resumed:"]
    for d in problems:
        lines.append(f"  {d.code} {d.title}" + (f" ({d.place})" if d.place else ""))
        lines += [f"    {line.text}" for line in d.evidence]
        lines += [f"    {d.why}"] if d.why else []
        lines += [f"    {python_form(h.command)}  # {h.text}" for h in d.helps]
    return "\n".join(lines)


LARGEST_ENTRY = (
    1 << 28
)  # bytes of tensors; larger ones (replay buffers) are left as what they are in the file


def entries_of(training: Training) -> dict[str, Any]:
    """All other entries of the file, as values where they can be made without running anything."""
    from ckptdoctor.formats.content import leaves_of

    made: dict[str, Any] = {}
    for name, part in training.rest.items():
        if sum(leaf.spec.nbytes for leaf in leaves_of(part.value)) > LARGEST_ENTRY:
            made[name] = part.value
            continue
        try:
            made[name] = plain(part, part.value)
        except NotPlain:
            made[name] = part.value
    return made


def _optimizer_receipt(work: OptimizerWork) -> OptimizerReceipt:
    params = [c for group in work.carry.params for c in group]
    flat = work.carry.saved.flat and not work.carry.dropped
    carried = [c for c in params if c.slots or (flat and c.sources)]
    return OptimizerReceipt(
        work.name,
        optimizer_kind(work.optimizer),
        len(carried),
        sum(bool(c.ops) for c in carried),
        {c.key: c.fresh for c in params if c not in carried},
        work.carry.unused,
        work.carry.how,
        (*work.hyper.notes, *_orphans(work.carry)),
    )


def _orphans(carried: Carry) -> tuple[str, ...]:
    orphans = carried.saved.orphans
    return (
        (f"state of {', '.join(orphans[:5])} in the file is of no parameter and is left out",)
        if orphans
        else ()
    )


def _notes(training: Training, optimizer: Any, scheduler: Any, scaler: Any, ema: Any) -> list[str]:
    given = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    left = [role for role, thing in given.items() if thing is None and training.value(role)]  # type: ignore[arg-type]  # its keys are roles
    notes = [f"the checkpoint also has {role} state; it is not restored without {role}=" for role in left]
    if ema is None and training.paths("ema"):
        notes.append("the checkpoint also has averaged weights (EMA); they are restored into ema=")
    note = getattr(training.layout, "note", "")
    return [*notes, *([note] if note else [])]
