"""Saving well in the first place: what a checkpoint needs to be loaded again, anywhere, by plain torch."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import ApplyError, VerifyError
from ckptdoctor.keys import printable
from ckptdoctor.training.background import Saving, raise_unheard, start
from ckptdoctor.training.live import bare_optimizer, by_name
from ckptdoctor.training.private import Copies
from ckptdoctor.training.unwrap import unwrapped_keys

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
_FIELD = re.compile(r"\{(epoch|iteration)(:[^}]*)?\}")


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    ema: nn.Module | None = None,
    meta: Mapping[str, Any] | None = None,
    epoch: int | None = None,
    iteration: int | None = None,
    keep: int | None = None,
    asynchronous: bool = False,
) -> Saving:
    """Write a checkpoint that plain torch loads with ``weights_only=True``, completely or not at all.

    With the model alone the file is its state dict (``.pth``, or ``.safetensors``); with anything else it is
    ``{"state_dict", "optimizer", "scheduler", "scaler", "ema_state_dict", "meta", "ckptdoctor"}``, those that
    are given. Keys are without wrappers (DataParallel, torch.compile ...), tensors on the CPU without hidden
    memory, ties are kept, the optimizer has its parameters' names, and the model's tree is recorded.

    ``path`` may hold ``{epoch}`` and ``{iteration}`` (``"run/{iteration:07d}.pth"``); then ``keep=3`` removes
    older files of the same pattern that this function wrote, once the new one is in place.
    ``asynchronous`` copies the values and writes in the background: :meth:`Saving.wait` waits; a failure is
    raised there, or by the next call. ``optimizer``, ``scheduler``, ``scaler`` may be lists or dicts.

    Raises :class:`~ckptdoctor.errors.ApplyError`: what cannot be saved, and where; nothing is written then.

    >>> save_checkpoint("last.pth", model, optimizer, epoch=3)            # doctest: +SKIP
    Saving('last.pth', done)
    """
    from ckptdoctor.writers import check_out

    raise_unheard()
    target = _named(path, epoch=epoch, iteration=iteration)
    _check_keep(path, keep)
    check_out(target)
    copies = Copies(always=asynchronous)
    whole = _contents(copies, target, model, optimizer, scheduler, scaler, ema, meta, epoch, iteration)

    def write() -> None:
        _write(whole, target)
        if keep is not None:
            _remove_older(os.fspath(path), target, keep)

    if asynchronous:
        return start(target, write)
    write()
    return Saving(target)


def _contents(
    copies: Copies,
    target: Path,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    scaler: Any,
    ema: nn.Module | None,
    meta: Mapping[str, Any] | None,
    epoch: int | None,
    iteration: int | None,
) -> OrderedDict[str, Any] | dict[str, Any]:
    names, state, record = _weights(model, copies)
    counters = {k: v for k, v in (("epoch", epoch), ("iteration", iteration)) if v is not None}
    described = {**copies.value(dict(meta or {}), "meta"), **counters}
    others: dict[str, Any] = {}
    if optimizer is not None:
        others["optimizer"] = _each(optimizer, "optimizer", lambda o: _optimizer(o, model, names, copies))
    for role, thing in (("scheduler", scheduler), ("scaler", scaler)):
        if thing is not None:
            others[role] = _each(thing, role, partial(_state_of, copies, role))
    if ema is not None:
        others["ema_state_dict"] = _average(ema, copies)
    if target.suffix.lower() == ".safetensors" and (others or described):
        raise ApplyError(
            f"`{printable(str(target))}`: .safetensors holds weights alone, not "
            f"{', '.join([*others, *described])}; write a .pth file, or the model alone"
        )
    if not others and not described:
        return state
    return {"meta": described, "state_dict": state, **others, "ckptdoctor": record}


def _weights(
    model: nn.Module, copies: Copies
) -> tuple[dict[str, str], OrderedDict[str, Any], dict[str, Any]]:
    """Key -> bare name; the state dict under bare names; what is recorded of the model."""
    from ckptdoctor import __version__
    from ckptdoctor.targets import snapshot

    if type(model).__name__ == "AveragedModel":
        raise ApplyError("model= is an AveragedModel; give the trained model, and this one as ema=")
    tree = snapshot(model)
    raw = model.state_dict(keep_vars=True)
    names = unwrapped_keys(model, list(raw))
    state: OrderedDict[str, Any] = OrderedDict((names[k], copies.value(v, names[k])) for k, v in raw.items())
    vars(state)["_metadata"] = metadata = _metadata(model, raw, names)
    bare = replace(tree, specs={names[k]: s for k, s in tree.specs.items()})
    record = {
        "format": FORMAT,
        "version": __version__,
        "tree": bare.digest,
        "params": [k for k, s in bare.specs.items() if s.kind == "param"],
        "ties": [list(group) for group in bare.ties],
    }
    metadata.setdefault("", {"version": 1})["ckptdoctor"] = bare.digest
    return names, state, record


def _metadata(model: nn.Module, raw: Mapping[str, Any], names: Mapping[str, str]) -> OrderedDict[str, Any]:
    """``_metadata`` with its module paths without wrappers, too; the inner module's where two become one."""
    found = getattr(raw, "_metadata", None) or {}
    bare = unwrapped_paths(model, list(found))
    return OrderedDict((bare[path], dict(entry)) for path, entry in found.items())


def unwrapped_paths(model: nn.Module, paths: list[str]) -> dict[str, str]:
    """Module paths without wrapper segments."""
    return {
        p: unwrapped_keys(model, [f"{p}.x" if p else "x"]).popitem()[1].removesuffix("x").rstrip(".")
        for p in paths
    }


def _optimizer(thing: Any, model: nn.Module, names: Mapping[str, str], copies: Copies) -> dict[str, Any]:
    """Its state dict with ``param_names`` in each group."""
    from ckptdoctor.training.live import listed_params

    optimizer = bare_optimizer(thing)
    listed = listed_params(optimizer, model)
    state = copies.value(optimizer.state_dict(), "optimizer")
    for group, keys in zip(state["param_groups"], listed, strict=True):
        group["param_names"] = [names[k] for k in keys]
    return dict(state)


def _average(ema: nn.Module, copies: Copies) -> OrderedDict[str, Any]:
    raw = ema.state_dict(keep_vars=True)
    names = unwrapped_keys(ema, list(raw))
    state = OrderedDict((names[k], copies.value(v, f"ema.{names[k]}")) for k, v in raw.items())
    vars(state)["_metadata"] = _metadata(ema, raw, names)
    return state


def _state_of(copies: Copies, role: str, thing: Any) -> Any:
    return copies.value(thing.state_dict(), role)


def _each(thing: Any, what: str, one: Callable[[Any], Any]) -> Any:
    if isinstance(thing, list | tuple):
        return [one(t) for t in thing]
    if isinstance(thing, Mapping):
        return {str(k): one(t) for k, t in thing.items()}
    by_name(thing, what)  # a clear error for what has no state dict
    return one(thing)


def _write(whole: Mapping[str, Any], target: Path) -> None:
    from ckptdoctor.writers import write_state_dict

    plain = "state_dict" not in whole or "ckptdoctor" not in whole
    if plain:
        write_state_dict(whole, target, check=lambda new: _check(new, None))
        return
    digest = whole["ckptdoctor"]["tree"]
    write_state_dict(whole, target, check=lambda new: _check(new, digest))


def _check(new: Path, digest: str | None) -> None:
    """What was written is what plain torch and our own reader see. Raises :class:`VerifyError`."""
    from ckptdoctor.formats import open_checkpoint
    from ckptdoctor.writers.plain import plain_load

    plain_load(new)
    if digest is not None:
        seen = open_checkpoint(new)["state_dict"].tree.digest
        if seen != digest:
            raise VerifyError("the new file does not hold the model's tree; no file was written")


def _named(path: str | os.PathLike[str], **numbers: int | None) -> Path:
    text = os.fspath(path)
    missing = [name for name, _ in _FIELD.findall(text) if numbers[name] is None]
    if missing:
        raise ApplyError(f"`{printable(text)}` names {{{missing[0]}}}; give {missing[0]}=")
    return Path(_FIELD.sub(lambda m: m[0].format(**numbers), text))


def _check_keep(path: str | os.PathLike[str], keep: int | None) -> None:
    if keep is None:
        return
    if keep < 1:
        raise ApplyError(f"keep={keep}: at least 1, the file that is written")
    if not _FIELD.search(Path(path).name):
        raise ApplyError(
            f"keep={keep} needs a file name with {{epoch}} or {{iteration}} in it, such as "
            '"last_{iteration:07d}.pth"; else each save replaces the one before'
        )


def _remove_older(pattern: str, newest: Path, keep: int) -> None:
    """Remove all but the last ``keep`` files of the pattern; only those that this function wrote."""
    name = Path(pattern).name
    pieces = _FIELD.split(name)[::3]
    matcher = re.compile(r"(-?\d+)".join(map(re.escape, pieces)))
    found = []
    for file in newest.parent.iterdir():
        match = matcher.fullmatch(file.name)
        if match is not None and file.is_file() and not file.is_symlink():
            found.append((tuple(int(n) for n in match.groups()), file))
    found.sort()
    own = matcher.fullmatch(newest.name)
    limit = tuple(int(n) for n in own.groups()) if own is not None else ()
    older = [file for numbers, file in found if numbers < limit]
    for file in older[: max(len(older) - (keep - 1), 0)]:
        if _is_ours(file):
            _remove(file, newest)


def _remove(file: Path, newest: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise ApplyError(
            f"`{printable(str(newest))}` is written, and the older `{printable(str(file))}` could not be "
            f"removed ({printable(error.strerror or str(error))}); remove it, or the next save will"
        ) from error


def _is_ours(file: Path) -> bool:
    from ckptdoctor.errors import ReadError
    from ckptdoctor.formats import open_checkpoint

    try:
        archive = open_checkpoint(file)
    except ReadError:
        return False
    root = archive.content.value if archive.content is not None else None
    return isinstance(root, Mapping) and isinstance(root.get("ckptdoctor"), Mapping)
