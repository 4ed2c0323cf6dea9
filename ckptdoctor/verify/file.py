"""Checking a written file before it takes its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import VerifyError
from ckptdoctor.ops.bits import same_bits
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import listing
from ckptdoctor.verify.replay import Casts, Fills, Reader, lossy_casts, quoted, replayed, words
from ckptdoctor.writers.plain import plain_load

if TYPE_CHECKING:
    from ckptdoctor.trees import ParamTree


def verify_file(
    expansion: Fills,
    reader: Reader,
    path: Path,
    target: ParamTree,
    *,
    initial: Callable[[str], Any] | None = None,
    accept: Collection[str] = (),
    bits: bool = True,
) -> Casts:
    """Check a file that a plan has written; returns what :func:`verify_model` does.

    ``path`` is opened anew, by this package's own reader and by plain torch or safetensors; both must find
    exactly the keys, shapes and dtypes of ``target``, and bit for bit what the plan makes of the source.
    Without ``bits`` only our own reader opens it, and only values whose dtype changes are read.

    Raises :class:`VerifyError`.
    """
    tree, written = _opened(path, bits)
    problems = [*_specs(tree, target)]
    casts: Casts = {}
    for key, fill in expansion.fills.items():
        if key in tree and (bits or fill.cast):
            problems += _one_written(key, fill, reader, written, initial, casts)
        elif key in tree and fill.kind == "load":
            casts[key] = (tree[key].dtype, "lossless")
    if bits:
        problems += [*_ties(expansion, target, tree, written), *_plain(path, target, written)]
    problems += lossy_casts(casts, accept)
    if problems:
        raise VerifyError(words(problems, "no file was written"))
    return casts


def _opened(path: Path, bits: bool) -> tuple[ParamTree, Reader]:
    from ckptdoctor.formats import open_checkpoint
    from ckptdoctor.formats.tensors import TensorReader

    archive = open_checkpoint(path)
    if len(archive.state_dicts) != 1:
        raise VerifyError(f"the new file should hold one state dict, it holds {len(archive.state_dicts)}")
    reader = TensorReader(archive, archive.state_dicts[0], check_crc=bits, mapped=True)
    if bits:
        reader.check(reader.state_dict.tree.specs)
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


def _ties(expansion: Fills, target: ParamTree, tree: ParamTree, written: Reader) -> Iterator[str]:
    """Keys that are one tensor in the model hold the same in the file, or the last one loaded would win."""
    pairs = [(key, fill.tied_to) for key, fill in expansion.fills.items() if fill.kind == "tie"]
    pairs += [(key, group[0]) for group in target.ties for key in group[1:]]
    for key, other in dict.fromkeys(pairs):
        if key in tree and other in tree and not same_bits(written(key), written(other)):
            yield f"{quoted(key)} and {quoted(other)} are one tensor in the model, two in the file"


def _plain(path: Path, target: ParamTree, written: Reader) -> Iterator[str]:
    """What plain torch makes of the file, against what our reader makes of it."""
    found = plain_load(path)
    due = [*target.specs, *target.extra]
    if sorted(found) != sorted(due):
        yield f"plain torch finds {len(found)} keys in the new file, the model has {len(due)}"
    for key in target.specs:
        if key in found and not same_bits(found[key], written(key)):
            yield f"{quoted(key)} is read differently by plain torch"


def _specs(tree: ParamTree, target: ParamTree) -> Iterator[str]:
    missing = [k for k in target.specs if k not in tree]
    extra = [k for k in tree.specs if k not in target]
    if missing:
        yield f"the file lacks {listing(missing)}"
    if extra:
        yield f"the file has {listing(extra)}, which the model has not"
    for key, spec in target.specs.items():
        found = tree.specs.get(key)
        if found is not None and (found.shape, found.dtype) != (spec.shape, spec.dtype):
            yield f"{quoted(key)} is {found.dtype}{list(found.shape)}, due {spec.dtype}{list(spec.shape)}"
