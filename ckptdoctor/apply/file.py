"""What a new file is made of, as a plan says: plain, on the CPU, without a byte too many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any

from ckptdoctor.apply.derived import derived_value
from ckptdoctor.apply.metadata import map_versions
from ckptdoctor.apply.staging import Expansion, Reader, Want, to_write
from ckptdoctor.apply.ties import check_copies, check_ties
from ckptdoctor.errors import ApplyError
from ckptdoctor.formats.lazy import columns_of
from ckptdoctor.keys import printable
from ckptdoctor.ops import parse_chain
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import listing
from ckptdoctor.writers import Contents, Piece, Span

if TYPE_CHECKING:
    from torch import Tensor

    from ckptdoctor.trees import ParamTree, TensorSpec

Initial = Callable[[str], Any]  # model key -> the model's own value; KeyError when it has none
SpansOf = Callable[[list[str], list[str]], Sequence[Span | None]]  # keys and dtypes of the checkpoint


def file_contents(
    expansion: Expansion,
    reader: Reader,
    target: ParamTree,
    *,
    initial: Initial | None = None,
    source_versions: Mapping[str, int] | None = None,
) -> Contents:
    """The file to write: every key of ``target``, in its order, in its shapes and dtypes.

    What the plan leaves as it is becomes bytes to copy, where the reader can tell them (``spans``); all else
    is made when it is written. ``initial`` gives the values that the plan keeps from the model; without it
    only well-known counters can be kept. Tied keys are one piece. Raises :class:`ApplyError`.
    """
    _check_complete(expansion, target, initial)
    fills, specs = expansion.fills, target.specs

    def make(key: str) -> Tensor:
        spec = specs[key]
        return to_write(key, fills[key], reader, Want(spec.shape, _dtype(spec.dtype)))

    due, _ = columns_of(specs, list(fills))
    # What is saved with extra state is saved by torch, from memory.
    spans = _spans(list(fills.values()), reader, due) if not target.extra else [None] * len(fills)
    made: dict[str, Piece] = {}
    for (key, fill), spec, span in zip(fills.items(), due, spans, strict=True):
        if span is not None:
            made[key] = Piece(spec.shape, spec.dtype, span)
        elif fill.kind == "load":
            made[key] = Piece(spec.shape, spec.dtype, make=partial(make, key))
        elif fill.kind != "tie":
            made[key] = Piece(spec.shape, spec.dtype, make=partial(_given, _own(key, target, initial)))
    check_ties(expansion, target.ties, _Made(made, make))
    check_copies(expansion, reader)
    _check_cut(expansion, reader, made)
    pieces = made if not target.ties and list(made) == list(specs) else _shared(expansion, target, made)
    objects = {key: initial(key) if initial is not None else None for key in target.extra}
    versions = map_versions(expansion, target.versions, source_versions or {}) if target.versions else {}
    return Contents(pieces, versions, objects)


def _given(value: Tensor) -> Tensor:
    return value


def _shared(expansion: Expansion, target: ParamTree, made: Mapping[str, Piece]) -> dict[str, Piece]:
    """The piece of each key, in the model's order; tied keys have one."""
    same = {key: group[0] for group in target.ties for key in group}
    pieces = {}
    for key in target.specs:
        if key in same or key not in made:
            anchor = _anchor(key, expansion)
            pieces[key] = made[same[anchor] if same.get(anchor) in made else anchor]
        else:
            pieces[key] = made[key]
    return pieces


def _spans(fills: Sequence[Fill], reader: Reader, due: Sequence[TensorSpec]) -> list[Span | None]:
    """The bytes that are the tensor as they are; None where it is made."""
    # A reader with spans is a TensorReader, of which `Reader` says nothing.
    spans_of: SpansOf | None = getattr(reader, "spans", None)
    if spans_of is None:
        return [None] * len(fills)
    alone = [fill.kind == "load" and not fill.cast and len(fill.sources) == 1 for fill in fills]
    sources = [fill.sources[0] for fill in compress(fills, alone)]
    found = iter(spans_of(sources, [spec.dtype for spec in compress(due, alone)]))
    spans = [next(found) if one else None for one in alone]
    for i, fill in enumerate(fills):
        span = spans[i] if fill.ops else None
        if span is not None:
            source = reader.state_dict.tree[fill.sources[0]]  # type: ignore[attr-defined]  # who has spans has it
            spans[i] = _part(fill, span, source, due[i])
    return spans


def _part(fill: Fill, span: Span, source: TensorSpec, due: TensorSpec) -> Span | None:
    """The bytes that are left by ops which only choose consecutive ones (a chunk of fused rows, a reshape).

    torch itself says which they are: the ops run on a tensor without memory, and what comes out is a
    contiguous view of it or not.
    """
    import torch

    whole = torch.empty(source.shape, dtype=_dtype(source.dtype), device="meta")
    try:
        part = parse_chain(fill.ops).run([whole])
        shared = part.untyped_storage()._cdata == whole.untyped_storage()._cdata
        exact = (tuple(part.shape), part.dtype) == (due.shape, whole.dtype)
        plain = shared and exact and part.is_contiguous() and not part.is_conj() and not part.is_neg()
    except Exception:
        return None  # ops that look at values; the tensor is made
    if not plain:
        return None
    offset = span.offset + int(part.storage_offset()) * whole.element_size()
    return span._replace(offset=offset, crc=None, whole=False)


class _Made(Mapping[str, "Tensor"]):
    """Pieces as tensors, each made when it is asked for; what is copied as well."""

    def __init__(self, pieces: Mapping[str, Piece], load: Callable[[str], Tensor]) -> None:
        self._pieces, self._load = pieces, load

    def __getitem__(self, key: str) -> Tensor:
        make = self._pieces[key].make
        return make() if make is not None else self._load(key)

    def __contains__(self, key: object) -> bool:
        return key in self._pieces

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def _check_cut(expansion: Expansion, reader: Reader, made: Mapping[str, Piece]) -> None:
    """Checksums of storages of which only a part is copied; those of whole ones are checked on the way."""
    check: Callable[[list[str]], None] = getattr(reader, "check", lambda keys: None)
    cut = [key for key, piece in made.items() if piece.span is not None and not piece.span.whole]
    check([source for key in cut for source in expansion.fills[key].sources])


def _check_complete(expansion: Expansion, target: ParamTree, initial: Initial | None) -> None:
    if list(expansion.fills) != list(target.specs) and set(expansion.fills) != set(target.specs):
        missing = [key for key in target.specs if key not in expansion.fills]
        foreign = [key for key in expansion.fills if key not in target]
        raise ApplyError(f"the plan is not for this model: {listing(missing + foreign)}. Make a new plan")
    if target.extra and initial is None:
        raise ApplyError(
            f"the model has extra state that is no tensor: {listing(target.extra)}; its values come from the "
            "model itself. Give the model (`ckptdoctor repair MODEL CKPT -o OUT`)"
        )
    if initial is None:
        kept = [k for k, f in expansion.fills.items() if f.kind in ("keep", "reinit")]
        unknown = [k for k in kept if derived_value(k, target[k].shape) is None]
        if unknown:
            raise ApplyError(
                f"the plan keeps the model's own values for {listing(unknown)}, which no file holds. "
                "Give the model (`ckptdoctor repair MODEL CKPT -o OUT`), so that it is built and asked"
            )


def _own(key: str, target: ParamTree, initial: Initial | None) -> Tensor:
    import torch

    spec = target[key]
    value = initial(key) if initial is not None else derived_value(key, spec.shape)
    if not isinstance(value, torch.Tensor) or value.is_meta or tuple(value.shape) != spec.shape:
        raise ApplyError(f"the model gives no value for `{printable(key)}`, which the plan keeps from it")
    return value.detach().to("cpu", _dtype(spec.dtype)).clone(memory_format=torch.contiguous_format)


def _anchor(key: str, expansion: Expansion) -> str:
    seen = set()
    while expansion.fills[key].kind == "tie":
        seen.add(key)
        key = expansion.fills[key].tied_to
        if key in seen or key not in expansion.fills:
            raise ApplyError(f"the tie of `{printable(key)}` leads to no tensor of the model")
    return key


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
