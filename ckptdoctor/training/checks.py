"""Static checks of optimizer state: of a file alone, and of a file against a model. No torch is needed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ckptdoctor.diagnosis import Diagnosis, python_form
from ckptdoctor.diagnostics import Diagnostic, Help
from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.formats.content import Leaf, scalar
from ckptdoctor.keys import printable
from ckptdoctor.training.answers import Answers
from ckptdoctor.training.carry import carry
from ckptdoctor.training.findings import finding, some
from ckptdoctor.training.naming import BUFFER_LEAVES, Sides, name_params, resolve
from ckptdoctor.training.saved import Saved, read_saved
from ckptdoctor.training.source import Training, of_archive, open_training, optimizers
from ckptdoctor.training.staging import dtype_problems

MOST_STEPS = 5000  # step counts that are read


def archive_findings(archive: Archive) -> list[Diagnostic]:
    """What a file shows of its own optimizer state: CKD601 to CKD606."""
    if not archive.mentions_optimizer:
        return []
    training = of_archive(archive)
    found: list[Diagnostic] = []
    for saved in saved_optimizers(training, found):
        found += _alone(training, saved)
    return found


def saved_optimizers(training: Training, problems: list[Diagnostic]) -> Iterator[Saved]:
    """The optimizers of a file that can be read; the others go to ``problems``."""
    part = training.parts.get("optimizer")
    if part is None:
        return
    for name, state in optimizers(part.value).items():
        saved = read_saved(part, state, name)
        if isinstance(saved, str):
            problems.append(
                finding(
                    "CKD608",
                    "the optimizer state cannot be read",
                    place=part.where,
                    why=saved,
                    severity="warning",
                )
            )
        else:
            yield saved


def _alone(training: Training, saved: Saved) -> Iterator[Diagnostic]:
    if saved.orphans:
        yield finding(
            "CKD603",
            f"the optimizer has state for {len(saved.orphans)} parameters that are in none of its groups",
            severity="warning",
            place=saved.where,
            lines=[some(saved.orphans)],
            why="torch.optim keeps such state without using it; parameters were removed by hand",
        )
    yield from _steps(saved)
    chosen = _weights(training)
    if chosen is not None:
        yield from _against(saved, chosen)


def _weights(training: Training) -> StateDict | None:
    paths = training.paths("model") or tuple(s.path for s in training.archive.state_dicts)
    return training.archive[paths[0]] if len(paths) == 1 or training.paths("model") else None


def _steps(saved: Saved) -> Iterator[Diagnostic]:
    archive = saved.part.archive
    values: Counter[float | int] = Counter()
    for param in saved.params[:MOST_STEPS]:
        step = param.slots.get("step")
        if isinstance(step, Leaf) and archive is not None:
            step = scalar(archive, step)
        if isinstance(step, int | float):
            values[step] += 1
    if len(values) > 1:
        yield finding(
            "CKD606",
            f"the parameters of the optimizer were stepped {len(values)} different numbers of times",
            severity="note",
            place=saved.where,
            lines=[f"{value:g} steps: {n} parameters" for value, n in values.most_common(5)],
            why="some were frozen for a time, or state of two runs was put together",
        )


def _against(saved: Saved, chosen: StateDict) -> Iterator[Diagnostic]:
    """Saved state against the weights of the same file."""
    tree = chosen.tree
    firsts = (
        [k for k in tree.specs if not any(k in g[1:] for g in tree.ties)] if tree.ties else list(tree.specs)
    )
    params = [k for k in firsts if k.rpartition(".")[2] not in BUFFER_LEAVES]
    keys: Sequence[str] | None = None
    if saved.named:
        keys = resolve([p.name or "" for p in saved.params], tree.specs)
        if keys is None:
            yield finding(
                "CKD603",
                "the optimizer's parameter names are not those of the weights in the same file",
                severity="warning",
                place=saved.where,
                lines=[some(p.name or "" for p in saved.params)],
                why="its state belongs to other weights, or one of them was renamed",
            )
    elif len(params) != len(saved.params):
        yield finding(
            "CKD601",
            f"the optimizer has {len(saved.params)} parameters, the state dict {len(params)}",
            severity="note",
            place=saved.where,
            lines=[f"groups of {', '.join(map(str, saved.sizes()))}"],
            why="frozen or tied parameters, or buffers; without param_names nothing says which are in it",
        )
    elif tree.ordered and len(saved.groups) == 1:
        keys = params
    if keys is None:
        return
    pairs = list(zip(keys, saved.params, strict=True))
    wrong = [(k, p.shape) for k, p in pairs if p.shape is not None and p.shape != tree[k].shape]
    if wrong:
        yield _wrong_shapes(saved, chosen, wrong)
        return
    yield from _dtypes_devices(saved, chosen, keys)


def _wrong_shapes(
    saved: Saved, chosen: StateDict, wrong: Sequence[tuple[str, tuple[int, ...] | None]]
) -> Diagnostic:
    order = "" if saved.named else " in the order of the state dict"
    return finding(
        "CKD602",
        f"the state of {len(wrong)} parameters has another shape than the parameter{order}",
        severity="warning" if saved.named else "note",
        place=saved.where,
        lines=[
            f"{printable(k)}: state {list(s or ())}, parameter {list(chosen.tree[k].shape)}"
            for k, s in wrong[:4]
        ],
        why="moments and weights of different networks, or in a different order",
        keys=[k for k, _ in wrong],
    )


def _dtypes_devices(saved: Saved, chosen: StateDict, keys: Sequence[str]) -> Iterator[Diagnostic]:
    dtypes: Counter[tuple[str, str]] = Counter()
    devices: Counter[tuple[str, str]] = Counter()
    for key, param in zip(keys, saved.params, strict=True):
        spec = chosen.tree[key]
        for leaf in param.tensors.values():
            if leaf.spec.shape == spec.shape and leaf.spec.dtype != spec.dtype:
                dtypes[leaf.spec.dtype, spec.dtype] += 1
            if leaf.spec.shape == spec.shape and leaf.spec.device != spec.device:
                devices[leaf.spec.device, spec.device] += 1
    if dtypes:
        yield finding(
            "CKD604",
            "optimizer state has another dtype than its parameters",
            severity="note",
            place=saved.where,
            lines=[f"{a} for parameters of {b}: {n} tensors" for (a, b), n in dtypes.items()],
            why="torch.optim casts it to the parameters' dtype when it loads; auto_resume keeps it",
        )
    if devices:
        yield finding(
            "CKD605",
            "optimizer state was saved on another device than its parameters",
            severity="note",
            place=saved.where,
            lines=[f"{a} for parameters on {b}: {n} tensors" for (a, b), n in devices.items()],
            why="torch.load without map_location puts both back there",
        )


def optimizer_findings(
    diagnosis: Diagnosis, path: str | os.PathLike[str] | None = None
) -> tuple[Diagnosis, str]:
    """A diagnosis with what stands against resuming the optimizer, and words on what does not.

    ``path`` is the checkpoint where it is a folder, with the optimizer in a file of its own.
    """
    folder = path is not None and os.path.isdir(path)
    training = open_training(path) if path is not None and folder else of_archive(diagnosis.archive)
    found: list[Diagnostic] = []
    carried = 0
    how = ""
    for saved in saved_optimizers(training, found):
        found += _alone(training, saved)
        if diagnosis.plan is None or diagnosis.state_dict is None:
            continue
        sides = _sides(diagnosis, training)
        named = name_params(saved, sides, Answers())
        work = carry(saved, named, sides, Answers(), _kind(saved))
        found += [*work.problems, *dtype_problems(work, sides, Answers())]
        carried += sum(bool(c.slots) for group in work.params for c in group)
        how = work.how
    if training.parts.get("optimizer") is None:
        found.append(
            finding(
                "CKD609", "the checkpoint has no optimizer state", severity="warning", place=training.file
            )
        )
    in_python = tuple(replace(d, helps=tuple(_in_python(h) for h in d.helps)) for d in _once(found))
    words = f"the optimizer state of {carried} parameters follows the plan, {how}" if carried else ""
    words = words or (f"the saved optimizer: {how}" if how else "")
    return replace(diagnosis, diagnostics=(*diagnosis.diagnostics, *in_python)), words


def _once(found: list[Diagnostic]) -> list[Diagnostic]:
    """An error says more than the note of the same code."""
    errors = {d.code for d in found if d.severity == "error"}
    return [d for d in found if d.severity == "error" or d.code not in errors]


def _in_python(help_: Help) -> Help:
    form = python_form(help_.command)
    return Help(f"auto_resume(..., {form})" if form != help_.command else form, help_.text)


def _sides(diagnosis: Diagnosis, training: Training) -> Sides:
    """As :func:`resume.sides_of`, without an optimizer at hand: all parameters of the model, in its order."""
    from ckptdoctor.plan.expand import expand_decided
    from ckptdoctor.training.resume import recorded_kinds

    assert diagnosis.plan is not None and diagnosis.state_dict is not None
    chosen = diagnosis.archive[diagnosis.state_dict]
    target = diagnosis.target.tree
    fills = expand_decided(diagnosis.plan, chosen.tree, target).fills if diagnosis.plan.complete else {}
    ways = {
        k: (f.sources, f.ops)
        for k, f in fills.items()
        if f.kind in ("load", "tie")
        and target[k].kind != "buffer"
        and k.rpartition(".")[2] not in BUFFER_LEAVES
    }
    own = frozenset(k for k, f in fills.items() if f.kind in ("keep", "reinit"))
    again = {k for group in target.ties for k in group[1:]}
    listed = tuple(
        k for k in target.specs if (k in ways or k in own) and k not in again and target[k].kind != "buffer"
    )
    return Sides(chosen.tree, target, ways, own, (listed,), recorded_kinds(training, chosen))


def _kind(saved: Saved) -> str:
    """The class that the state looks like, as far as it matters."""
    if "row_var" in saved.slots:
        return "Adafactor"
    return "Muon" if any("ns_steps" in g for g in saved.groups) else "Adam"
