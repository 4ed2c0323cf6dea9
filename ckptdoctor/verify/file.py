"""Checking a written file before it takes its place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import VerifyError
from ckptdoctor.formats.lazy import forms_of
from ckptdoctor.formats.walk import anything, children
from ckptdoctor.ops.bits import same_bits
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import listing
from ckptdoctor.verify.copied import Mapped, Pair, copied, differing
from ckptdoctor.verify.envelope import envelope_problems
from ckptdoctor.verify.replay import Casts, Fills, Reader, lossy_casts, quoted, replayed, words
from ckptdoctor.writers.plain import plain_load

if TYPE_CHECKING:
    from ckptdoctor.formats.envelope import Envelope
    from ckptdoctor.formats.tensors import TensorReader
    from ckptdoctor.trees import ParamTree

Forms = tuple[list[str], list[tuple[int, ...]], list[str]]  # keys, shapes and dtypes
TOLD = 64 << 20  # bytes that are compared before somebody is told


def verify_file(
    expansion: Fills,
    reader: Reader,
    path: Path,
    target: ParamTree,
    *,
    initial: Callable[[str], Any] | None = None,
    accept: Collection[str] = (),
    bits: bool = True,
    on_bytes: Callable[[int], None] | None = None,
    envelope: Envelope | None = None,
) -> Casts:
    """Check a file that a plan has written; returns what :func:`verify_model` does.

    ``path`` is opened anew, by this package's own reader and by plain torch or safetensors; both must find
    exactly the keys, shapes and dtypes of ``target``, and bit for bit what the plan makes of the source.
    Without ``bits`` only our own reader opens it, and only values whose dtype changes are read. With an
    ``envelope`` the state dict is in it, and everything around it must be what it was. ``on_bytes`` is told
    how many bytes more of the new file were compared.

    Raises :class:`VerifyError`.
    """
    tree, written = _opened(path, bits, envelope)
    there = forms_of(tree.specs)
    problems = [*_specs(there, forms_of(target.specs))]
    pairs = copied(expansion.fills, reader, written, tree) if bits else {}
    lossless: Casts = {dtype: (dtype, "lossless") for dtype in set(there[2])}
    as_is = dict(zip(there[0], map(lossless.__getitem__, there[2]), strict=True))
    casts: Casts = {key: as_is[key] for key in pairs}
    tell = on_bytes or _nobody
    problems += [*_differing([*pairs.values()], reader, written, tell)]
    if bits:
        written.check(key for key in tree.specs if key not in pairs or not pairs[key].found.whole)
    for key, fill in expansion.fills.items():
        if key in pairs or key not in as_is:
            continue
        if bits or fill.cast:
            problems += _one_written(key, fill, reader, written, initial, casts)
            tell(tree[key].nbytes)
        elif fill.kind == "load":
            casts[key] = as_is[key]
    if bits:
        problems += [
            *_ties(expansion, target, tree, written),
            *_plain(path, target, written, pairs, envelope),
        ]
    if envelope is not None:
        problems += envelope_problems(envelope, path, bits=bits)
    problems += lossy_casts(casts, accept)
    if problems:
        raise VerifyError(words(problems, "no file was written"))
    return casts


def _nobody(_: int) -> None:
    """Nobody wants to know."""


def _differing(
    pairs: Sequence[Pair], reader: Any, written: TensorReader, tell: Callable[[int], None]
) -> Iterator[str]:
    """What is wrong with copied bytes; ``reader`` is a TensorReader where there are any."""
    first = size = 0
    for at, pair in enumerate(pairs, start=1):
        size += pair.nbytes
        if size >= TOLD or at == len(pairs):
            wrong = differing(pairs[first:at], reader.files, written.files)
            yield from (f"{quoted(key)} {what}" for key, what in wrong.items())
            tell(size)
            first, size = at, 0


def _opened(path: Path, bits: bool, envelope: Envelope | None) -> tuple[ParamTree, TensorReader]:
    from ckptdoctor.formats import open_checkpoint
    from ckptdoctor.formats.tensors import TensorReader

    archive = open_checkpoint(path)
    found = [s for s in archive.state_dicts if envelope is None or s.path == envelope.path]
    if len(found) != 1:
        raise VerifyError(f"the new file should hold one state dict, it holds {len(found)}")
    reader = TensorReader(archive, found[0], check_crc=bits, mapped=True)
    return reader.state_dict.tree, reader


def _one_written(
    key: str,
    fill: Fill,
    reader: Reader,
    written: Reader,
    initial: Callable[[str], Any] | None,
    casts: Casts,
) -> Iterator[str]:
    if fill.kind == "load":
        yield from replayed(key, fill, reader, written(key), casts)
    elif fill.kind != "tie" and initial is not None:
        found = written(key)
        if not same_bits(found, initial(key).detach().to("cpu", found.dtype)):
            yield f"{quoted(key)} is not the model's own value"


def _ties(expansion: Fills, target: ParamTree, tree: ParamTree, written: TensorReader) -> Iterator[str]:
    """Keys that are one tensor in the model hold the same in the file, or the last one loaded would win."""
    pairs = [(key, fill.tied_to) for key, fill in expansion.fills.items() if fill.kind == "tie"]
    pairs += [(key, group[0]) for group in target.ties for key in group[1:]]
    for key, other in dict.fromkeys(pairs):
        if key in tree and other in tree and tree[key] == tree[other] and tree[key].storage:
            continue  # one place in the file
        if key in tree and other in tree and not same_bits(written(key), written(other)):
            yield f"{quoted(key)} and {quoted(other)} are one tensor in the model, two in the file"


def _plain(
    path: Path,
    target: ParamTree,
    written: TensorReader,
    pairs: Mapping[str, Pair],
    envelope: Envelope | None,
) -> Iterator[str]:
    """What plain torch makes of the file, against what our reader makes of it."""
    found = plain_load(path) if envelope is None else _inside(path, envelope)
    if found is None:
        return
    due = [*target.specs, *target.extra]
    if sorted(found) != sorted(due):
        yield f"plain torch finds {len(found)} keys in the new file, the model has {len(due)}"
    mapped = Mapped(path)
    for key, spec in target.specs.items():
        if key not in found:
            continue
        pair = pairs.get(key)
        span = pair.found if pair is not None else written.span(key, spec.dtype) if spec.numel else None
        if span is not None and mapped.has(found[key], span, spec.dtype, spec.shape):
            continue  # it is these bytes
        if not same_bits(found[key], written(key)):
            yield f"{quoted(key)} is read differently by plain torch"


def _inside(path: Path, envelope: Envelope) -> Mapping[str, Any] | None:
    """The state dict as plain torch finds it in the envelope; None if the old file needed trust, too."""
    with warnings.catch_warnings():  # torch warns of the protocol that the old file has as well
        warnings.simplefilter("ignore")
        try:
            root: Any = plain_load(path)
        except VerifyError:
            with suppress(VerifyError):
                plain_load(Path(envelope.archive.path))
                raise
            return None
    places = [(root, "")]
    while places:
        node, where = places.pop()
        if where == envelope.path:
            return node if isinstance(node, Mapping) else {}
        if isinstance(node, dict | list | tuple):
            below = children(node, where, anything)
            places += [(value, at) for at, value in below if envelope.path.startswith(at)]
    return {}


def _specs(there: Forms, due: Forms) -> Iterator[str]:
    if there == due:
        return
    found, wanted = (
        {k: (shape, dtype) for k, shape, dtype in zip(*forms, strict=True)} for forms in (there, due)
    )
    missing = [k for k in wanted if k not in found]
    extra = [k for k in found if k not in wanted]
    if missing:
        yield f"the file lacks {listing(missing)}"
    if extra:
        yield f"the file has {listing(extra)}, which the model has not"
    for key, (shape, dtype) in wanted.items():
        what = found.get(key, (shape, dtype))
        if what != (shape, dtype):
            yield f"{quoted(key)} is {what[1]}{list(what[0])}, due {dtype}{list(shape)}"
