"""Load and prove in one transaction: ``apply`` does, ``verify`` judges, the receipt records."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.apply import Expansion, Initial, Reader, file_contents, run_on_model
from ckptdoctor.apply.derived import derived_value
from ckptdoctor.casts import CastClass
from ckptdoctor.columns import rows
from ckptdoctor.errors import ApplyError
from ckptdoctor.formats import quiet_gc
from ckptdoctor.formats.blobs import Files
from ckptdoctor.formats.lazy import columns_of
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import Action, Entry, ProbeResult, Receipt
from ckptdoctor.verify import verify_file, verify_model
from ckptdoctor.verify.derived import check_derived, not_compared
from ckptdoctor.writers import Contents, check_envelope, check_out, write_contents

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ckptdoctor.formats.envelope import Envelope
    from ckptdoctor.targets.survey import Survey
    from ckptdoctor.trees import ParamTree

Values = Callable[[str], "Tensor | None"]

_ACTIONS: dict[str, Action] = {"load": "loaded", "keep": "kept", "reinit": "reinitialised", "tie": "tied"}


def apply_to_model(
    expansion: Expansion,
    reader: Reader,
    model: nn.Module,
    target_tree: ParamTree,
    *,
    fresh: Callable[[], Reader] | None = None,
    device: torch.device | str | None = None,
    source_versions: Mapping[str, int] | None = None,
    accept: Collection[str] = (),
    on_tensor: Callable[[str], None] | None = None,
    verify: bool = True,
    source: str = "",
    state_dict: str = "",
    target: str = "",
    probe: Callable[[], ProbeResult] | None = None,
    then: Callable[[], None] | None = None,
    found: Survey | None = None,
) -> Receipt:
    """Fill a live model from a checkpoint and verify it; the model is untouched unless all of it holds.

    ``expansion`` is the plan key by key, ``reader`` gives the checkpoint's tensors, ``target_tree`` is the
    model's tree from before. ``fresh`` opens the file once more for the verification (default: ``reader``
    again). ``device`` says where tensors on meta are created; other models are filled where they are.
    ``source_versions`` is the checkpoint's ``_metadata``; ``accept`` names cast classes that a person
    accepted (``"range"``). Without ``verify`` no bits are compared. ``source``, ``state_dict`` and
    ``target`` are words for the receipt. ``probe`` runs the loaded model on known inputs and raises when it
    gives something else; for that alone a copy of the old values is kept. ``then`` runs last, before the
    model is written: if it raises, the model is as before, too. ``found`` is the model as it was walked for
    ``target_tree`` just now.

    Raises :class:`~ckptdoctor.errors.ApplyError` or :class:`~ckptdoctor.errors.VerifyError`.
    """
    receipts = []

    def check(before: Values, pending: Values, into: Mapping[str, Tensor]) -> None:
        # The receipt is made here, so that nothing can fail once the model keeps its new values.
        def verified(into: Mapping[str, Tensor]) -> Mapping[str, tuple[str, CastClass]]:
            return verify_model(
                expansion,
                fresh() if fresh is not None else reader,
                model,
                ties=target_tree.ties,
                before=before,
                pending=pending,
                into=into,
                accept=accept,
                bits=verify,
            )

        notes = check_derived(expansion.fills, expansion.unused, reader, model, accept)
        casts, parity = verified(into), None
        if probe is not None:
            parity = probe()
            verified({})  # again: a forward pass may write to its own model, or put other tensors there
        entries = _entries(expansion, target_tree, casts)
        made = Receipt(source, state_dict, target, "", entries, dict(expansion.unused), notes)
        receipts.append(replace(made, probe=parity, verified=verify))
        if then is not None:
            then()

    with quiet_gc():
        run_on_model(
            expansion,
            reader,
            model,
            check=check,
            runs_code=probe is not None or then is not None,
            ahead=probe is not None,
            compare=verify,
            device=device,
            source_versions=source_versions,
            on_tensor=on_tensor,
            found=found,
        )
    return receipts[0]


def apply_to_file(
    expansion: Expansion,
    reader: Reader,
    out: str | os.PathLike[str],
    target_tree: ParamTree,
    *,
    fmt: str | None = None,
    initial: Initial | None = None,
    fresh: Callable[[], Reader] | None = None,
    source_versions: Mapping[str, int] | None = None,
    accept: Collection[str] = (),
    max_shard_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    verify: bool = True,
    source: str = "",
    state_dict: str = "",
    target: str = "",
    probe: Callable[[Path], ProbeResult] | None = None,
    envelope: Envelope | None = None,
    notes: Sequence[str] = (),
) -> Receipt:
    """Write the repaired state dict to ``out`` and verify it; ``out`` is as before unless all of it holds.

    The file is accepted by ``model.load_state_dict(torch.load(out, weights_only=True), strict=True)``, or by
    ``load_file(out)`` for safetensors. ``fmt`` is ``"pth"`` or ``"safetensors"``, by default what the suffix
    says. ``initial`` gives the model's own value for keys that the plan keeps. ``out`` may be the checkpoint
    itself; it is replaced at the very end. More bytes than ``max_shard_size`` become several files with an
    index. ``progress(done, total)`` is told the bytes, those written and those compared. Without ``verify``
    the new file's header is read back and not its bytes. ``probe`` is given the new file, which must be one.
    With an ``envelope`` the file has everything that the checkpoint has, and the repaired state dict in place
    of its own; it is one ``.pth`` file. ``notes`` are for the receipt. The other arguments are those of
    :func:`apply_to_model`.

    Raises :class:`~ckptdoctor.errors.ApplyError` or :class:`~ckptdoctor.errors.VerifyError`.
    """
    path = Path(out)
    check_out(path, fmt)
    if probe is not None and max_shard_size is not None:
        raise ApplyError(
            "a probe runs on one file; leave out either the probe or the largest size of a shard"
        )
    if envelope is not None:
        check_envelope(path, fmt, max_shard_size is not None, probe is not None)
    receipts: list[Receipt] = []
    casts: dict[str, tuple[str, CastClass]] = {}
    parts: list[Contents] = []

    def check(written: Path, part: Contents) -> None:
        again = fresh() if fresh is not None else reader
        due = target_tree if len(part.pieces) == len(target_tree) else target_tree.subset(part.pieces)
        fills = expansion if due is target_tree else _Part({k: expansion.fills[k] for k in due.specs})
        how: dict[str, Any] = {"initial": initial, "accept": accept, "bits": verify, "envelope": envelope}
        how["on_bytes"] = told if verify else None
        casts.update(verify_file(fills, again, written, due, **how))
        parts.append(part)
        name = out if len(part.pieces) == len(target_tree) else f"{out} (in {len(parts)} parts)"
        entries = _entries(expansion, target_tree, casts)
        replaced = (f"{out} replaced the file that was read",) if _same_file(source, path) else ()
        said = (*notes, *replaced, *not_compared(expansion.fills, expansion.unused, target_tree))
        parity = probe(written) if probe is not None else None
        made = Receipt(source, state_dict, target, str(name), entries, dict(expansion.unused), said)
        receipts[:] = [replace(made, probe=parity, verified=verify)]

    files = getattr(reader, "files", None) or Files()
    with quiet_gc():
        contents = file_contents(
            expansion, reader, target_tree, initial=initial, source_versions=source_versions
        )
        contents = replace(contents, envelope=envelope)
        told = None if progress is None else _Told(progress, contents.nbytes, target_tree if verify else None)
        write_contents(
            contents,
            path,
            files,
            fmt=fmt,
            max_shard_size=max_shard_size,
            check=check,
            on_bytes=told,
        )
    return receipts[0]


@dataclass(frozen=True)
class _Part:
    """The part of a plan that one of several files holds."""

    fills: Mapping[str, Fill]


class _Told:
    """Adds up what several threads wrote, and what was compared of the ``verified`` tree."""

    def __init__(self, tell: Callable[[int, int], None], nbytes: int, verified: ParamTree | None) -> None:
        self._tell, self._total, self._done = tell, nbytes, 0
        if verified is not None:
            self._total += sum(spec.nbytes for spec in verified.specs.values())
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._tell(min(self._done, self._total), self._total)


def needs_model(expansion: Expansion, target_tree: ParamTree) -> tuple[str, ...]:
    """Model keys whose value only the model itself can give, so that ``initial`` is needed; often none."""
    kept = [key for key, fill in expansion.fills.items() if fill.kind in ("keep", "reinit")]
    known = not target_tree.extra and all(derived_value(k, target_tree[k].shape) is not None for k in kept)
    return () if known else (*kept, *target_tree.extra)


def _same_file(source: str, out: Path) -> bool:
    return bool(source) and os.path.realpath(source) == os.path.realpath(out)


def _entries(
    expansion: Expansion, tree: ParamTree, casts: Mapping[str, tuple[str, CastClass]]
) -> tuple[Entry, ...]:
    fills = expansion.fills
    specs, _ = columns_of(tree.specs, list(fills))
    cast = list(map(casts.get, fills, repeat(("", "lossless"))))
    return tuple(
        rows(
            Entry,
            fills,
            [_ACTIONS[fill.kind] for fill in fills.values()],
            [(fill.tied_to,) if fill.kind == "tie" else fill.sources for fill in fills.values()],
            [() if fill.kind == "tie" else fill.ops for fill in fills.values()],
            [spec.numel for spec in specs],
            [name for name, _ in cast],
            [spec.dtype for spec in specs],
            [kind for _, kind in cast],
        )
    )
