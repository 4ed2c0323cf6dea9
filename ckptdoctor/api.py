"""The facade: what a person does with a checkpoint and a model, as functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.decisions import Decision, parse_decisions
from ckptdoctor.errors import ApplyError, DecisionError, PlanError
from ckptdoctor.inspecting import inspect as inspect
from ckptdoctor.keys import printable
from ckptdoctor.running import into_file, into_model

if TYPE_CHECKING:
    import torch

    from ckptdoctor.contract import CheckReport
    from ckptdoctor.diagnosis import Diagnosis, Judged
    from ckptdoctor.formats.base import Archive
    from ckptdoctor.plan import Plan
    from ckptdoctor.receipt import Receipt
    from ckptdoctor.targets import Target
    from ckptdoctor.treediff import TreeDiff
    from ckptdoctor.trees import ParamTree

PathLike = str | os.PathLike[str]
Model = Any  # torch.nn.Module | ParamTree | str | os.PathLike[str]; torch is not imported to say so
Decisions = Iterable[str | Decision]
Progress = Callable[[int, int], None]  # bytes done, bytes in all


def snapshot(model: torch.nn.Module) -> ParamTree:
    """The tree of a live model: its keys, shapes, dtypes, ties and modules, without its values.

    The keys are exactly those of ``model.state_dict()``; models on the meta device are fine.

    >>> import torch
    >>> list(snapshot(torch.nn.Linear(3, 2)).specs)
    ['weight', 'bias']
    """
    from ckptdoctor.targets import snapshot as read

    return read(model)


def diagnose(
    model: Model,
    path: PathLike,
    *,
    decisions: Decisions = (),
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60,
    reporter: Any = None,
) -> Diagnosis:
    """Say whether a checkpoint fits a model, why not, and what repairs it. Changes nothing.

    ``model`` is a live module, a :class:`ParamTree`, or what the command line takes (``"model.py:resnet"``,
    ``"package.module:name"``, a reference checkpoint, a ``.tree`` file), built with ``kwargs`` within
    ``timeout`` seconds in a process of its own. ``decisions`` are texts such as ``"reinit=fc.**"``.
    Raises ``ReadError`` (checkpoint), ``TargetError`` (model) or ``DecisionError``.

    >>> diagnose(model, "ddp.pth").verdict                              # doctest: +SKIP
    'repairable'
    """
    from ckptdoctor.formats import quiet_gc

    with quiet_gc():
        return _judged(model, path, decisions, kwargs, timeout, reporter).narrated()


def _judged(
    model: Model,
    path: PathLike,
    decisions: Decisions,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60,
    reporter: Any = None,
) -> Judged:
    from ckptdoctor.diagnosis import judge

    archive, parsed = _opened(path, tuple(map(_with_rows, parse_decisions(decisions))))
    return judge(archive, _target(model, archive, kwargs, timeout, parsed), parsed, reporter=reporter)


def _with_rows(decision: Decision) -> Decision:
    """An op that names a file of rows, with the rows written out: what is recorded has to stand alone."""
    if decision.kind != "op" or "@" not in decision.value:
        return decision
    from ckptdoctor.ops.rows import resolve_rows

    try:
        return Decision("op", resolve_rows(decision.value))
    except PlanError as error:
        raise DecisionError(f"{printable(str(decision))}: {error}") from None


def plan(
    model: Model,
    path: PathLike,
    decisions: Decisions = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60,
) -> Plan:
    """The complete, safe plan that makes the checkpoint load into the model, to be reviewed and applied.

    Arguments as for :func:`diagnose`. Raises :class:`~ckptdoctor.errors.UndecidedError` naming the open
    questions and the decisions that answer them, or :class:`~ckptdoctor.errors.IncompatibleError`.

    >>> print(plan(model, "ddp.pth").step[0].op)                        # doctest: +SKIP
    strip_prefix
    """
    diagnosis = diagnose(model, path, decisions=decisions, kwargs=kwargs, timeout=timeout)
    diagnosis.raise_for_verdict()
    assert diagnosis.plan is not None  # raise_for_verdict
    return diagnosis.plan


def apply(
    plan: Plan,
    path: PathLike | None = None,
    *,
    model: Model = None,
    out: PathLike | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60,
    device: Any = None,
    probe: Any = None,
    materialise: bool = False,
    verify: bool = True,
    max_shard_size: str | int | None = None,
    keep_envelope: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Do exactly what a plan says, and prove it: into a live ``model``, or into the file ``out``.

    ``path`` is the checkpoint, by default the one that the plan names. With ``out`` (``.pth`` or
    ``.safetensors``) ``model`` only says which tree the file is for, by default the plan's model (built with
    ``kwargs``); a live model is not changed then. ``device``, ``materialise``, ``verify`` and ``probe`` are
    those of :func:`auto_load`. More bytes than ``max_shard_size`` (``"5GB"``) become several files and an
    index; ``progress(done, total)`` tells bytes. ``keep_envelope`` writes everything else of the checkpoint
    as well, as it is, with the repaired state dict in the place of its own (``.pth`` only).

    Raises :class:`~ckptdoctor.errors.StalePlanError` when the plan was made for other trees, and
    ``ApplyError``, after which model and file are as before.

    >>> print(apply(plan(model, "ddp.pth"), "ddp.pth", model=model))    # doctest: +SKIP
    loaded 320 tensors (25,610,205 values) from ddp.pth into ResNet
    """
    file = plan.source.file if path is None else path
    archive, _ = _opened(file, plan_choice(plan))
    if out is None:
        if model is None or isinstance(model, str | os.PathLike):
            raise ApplyError("apply() needs a live model to load into, or out= for a file to write")
        return into_model(plan, archive, model, device, materialise, verify, probe)
    asked = plan.target.model if model is None else model
    target = _target(asked, None, kwargs, timeout)
    live = None if isinstance(asked, str | os.PathLike) else getattr(asked, "state_dict", None)
    how: dict[str, Any] = {"verify": verify, "max_shard_size": max_shard_size, "progress": progress}
    how |= {"probe": probe, "keep_envelope": keep_envelope}
    return into_file(plan, archive, target, out, kwargs=kwargs, timeout=timeout, live=live, **how)


def _opened(path: PathLike, decisions: tuple[Decision, ...]) -> tuple[Archive, tuple[Decision, ...]]:
    """The file's headers, and the decisions with ``choose=ema`` as the state dict that it means."""
    from ckptdoctor.formats import open_checkpoint

    archive = open_checkpoint(path)
    if not any(d.kind == "choose" for d in decisions):
        return archive, decisions
    from ckptdoctor.training.average import resolve

    return resolve(archive, decisions)


def plan_choice(plan: Plan) -> tuple[Decision, ...]:
    """The state dict that a plan was made for, as a decision."""
    return (Decision("choose", plan.source.state_dict),) if plan.source.state_dict else ()


def auto_load(
    model: torch.nn.Module,
    path: PathLike,
    *,
    plan: Plan | PathLike | None = None,
    decisions: Decisions = (),
    device: Any = None,
    probe: Any = None,
    materialise: bool = False,
    verify: bool = True,
    reporter: Any = None,
) -> Receipt:
    """Load a checkpoint into a live model, repairing names and layouts on the way, strictly and proved.

    Diagnoses, plans, applies and verifies; every model key is filled from the file, tied, or kept by a
    recorded decision. With ``plan`` (a :class:`Plan` or the path of a plan file) exactly that is done.
    ``decisions`` are the texts of the command line's flags (``["reinit=fc.**", "choose=state_dict_ema"]``);
    ``device`` is where a model on the meta device is created, others are filled where they are.

    A model on the meta device takes the file's own memory, mapped copy-on-write, where the file lies on a
    local disk; ``materialise=True`` reads a private copy instead, after which the file may be edited in
    place or truncated. ``verify=False`` leaves out checksums and the comparison of bits, nothing else.

    ``probe`` is forward parity on top of the exact replay: ``(inputs, expected)``, a dict with these names
    (and maybe ``rtol``, ``atol``), or the path of a file that holds one. Inputs are a tensor, a tuple of
    arguments or a dict of keyword arguments; the model runs in eval mode without gradients.

    Raises :class:`~ckptdoctor.errors.UndecidedError` or :class:`~ckptdoctor.errors.IncompatibleError` with
    ``.diagnostics``, and :class:`~ckptdoctor.errors.ApplyError`; the model is untouched then.

    >>> receipt = auto_load(model, "ddp.pth")                           # doctest: +SKIP
    >>> receipt.loaded                                                  # doctest: +SKIP
    320
    """
    from ckptdoctor.formats import quiet_gc

    with quiet_gc():  # objects for every key, and no garbage
        return _auto_load(
            model, path, plan, decisions, reporter,
            device=device, materialise=materialise, verify=verify, probe=probe,
        )  # fmt: skip


def _auto_load(
    model: Any, path: PathLike, plan: Any, decisions: Decisions, reporter: Any, **how: Any
) -> Receipt:
    if plan is not None:
        made = read_plan(plan) if isinstance(plan, str | os.PathLike) else plan
        if tuple(decisions):
            raise DecisionError("a plan holds its decisions already; give either plan= or decisions=")
        return into_model(made, _opened(path, plan_choice(made))[0], model, **how)
    found = _judged(model, path, decisions, reporter=reporter)
    case = found.case
    if found.verdict not in ("compatible", "repairable") or case.plan is None:
        found.narrated().raise_for_verdict()
    assert case.plan is not None  # raise_for_verdict
    if not isinstance(model, str | os.PathLike):
        how |= {"tree": case.target.tree, "expansion": found.expansion, "walked": case.target.walked}
    return into_model(case.plan, case.archive, model, **how)


def read_plan(path: PathLike) -> Plan:
    """Read a plan file (TOML). Raises :class:`~ckptdoctor.errors.PlanError` naming the line."""
    from ckptdoctor.plan import from_toml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(f"{printable(os.fspath(path))} is no plan: {error.reason}") from None
    except OSError as error:
        raise PlanError(f"{printable(os.fspath(path))} cannot be read: {error.strerror}") from None
    try:
        return from_toml(text)
    except PlanError as error:
        raise PlanError(f"{printable(os.fspath(path))}: {error}", error.diagnostics) from None


def write_diagnosed(
    diagnosis: Diagnosis,
    out: PathLike,
    *,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60,
    **how: Any,
) -> Receipt:
    """Apply the plan of a diagnosis to a file; the model is built for its own values and for a probe.

    ``probe``, ``verify``, ``max_shard_size``, ``keep_envelope`` and ``progress`` are those of :func:`apply`.
    """
    diagnosis.raise_for_verdict()
    assert diagnosis.plan is not None  # raise_for_verdict
    made = diagnosis.plan, diagnosis.archive, diagnosis.target
    return into_file(*made, out, kwargs=kwargs, timeout=timeout, known=diagnosis.expansion, **how)


def _target(
    model: Model,
    archive: Archive | None,
    kwargs: Mapping[str, Any] | None,
    timeout: float,
    decisions: Sequence[Decision] = (),
) -> Target:
    from ckptdoctor.targets import Target, load_target
    from ckptdoctor.targets.live import live_target, with_settings
    from ckptdoctor.trees import ParamTree

    if isinstance(model, Target):
        return model
    if isinstance(model, ParamTree):
        return Target(model, "model")
    if isinstance(model, str | os.PathLike):
        prefer = (lambda found: _best(found, archive, decisions)) if archive is not None else None
        found = load_target(model, kwargs=kwargs, timeout=timeout, prefer=prefer)
        return with_settings(found, Path(os.fspath(model).partition(":")[0]).parent)
    return live_target(model)


def _best(found: Sequence[Target], archive: Archive, decisions: Sequence[Decision]) -> int | None:
    """The one of several models that explains the checkpoint best, or None when two do equally well."""
    from ckptdoctor.diagnosis import examine

    order = {"compatible": 3, "repairable": 2, "undecided": 1, "incompatible": 0}
    scores = []
    for target in found:
        seen = examine(archive, target, decisions)
        scores.append((order[seen.verdict], round(seen.coverage, 3)))
    top = max(scores, default=(0, 0.0))
    return scores.index(top) if scores.count(top) == 1 and top[0] else None


def diff(a: Model, b: Model, *, kwargs: Mapping[str, Any] | None = None, timeout: float = 60) -> TreeDiff:
    """Compare two checkpoints, models or trees by name: keys, shapes, dtypes, ties.

    Each side is a checkpoint file (``file.pth#path`` picks a state dict), a live module, or what
    :func:`diagnose` takes as a model. The result is falsy when nothing differs.

    >>> import torch
    >>> diff(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2, bias=False)).removed
    ('bias',)
    """
    from ckptdoctor.treediff import TreeDiff

    first, second = (_target(side, None, None if _is_file(side) else kwargs, timeout) for side in (a, b))
    return TreeDiff(first.label, second.label, first.tree, second.tree)


def _is_file(side: Model) -> bool:
    return (
        isinstance(side, str | os.PathLike) and Path(side).suffix not in ("", ".py") and Path(side).exists()
    )


def check(
    folder: PathLike = ".", *, against: str | None = None, build: bool = True, model: str | None = None
) -> CheckReport:
    """Hold the models of a project against their committed trees, their releases and their migrations.

    The project is the nearest ``pyproject.toml`` at or above ``folder`` with ``[tool.ckptdoctor]``.
    ``against`` is a commit whose migrations and releases have to be there still, and whose models'
    checkpoints have to load. ``build=False`` takes the committed trees for the models, which needs no torch.
    ``model`` names one model or variant. Writes nothing that git sees. Raises
    :class:`~ckptdoctor.errors.SettingsError` naming the line, and
    :class:`~ckptdoctor.errors.ContractError` when git does not know ``against``.

    >>> check(against="main").ok                                        # doctest: +SKIP
    True
    """
    from ckptdoctor.contract import check_project

    return check_project(Path(folder), against=against, build=build, model=model)
