"""Optimizer state as tensors: read, moved through the plan, in the dtype and on the device of its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from ckptdoctor.casts import cast_class
from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.errors import ApplyError, UndecidedError
from ckptdoctor.formats.content import Leaf, leaf_reader
from ckptdoctor.keys import printable
from ckptdoctor.ops import parse_chain
from ckptdoctor.ops.bits import same_bits
from ckptdoctor.training.answers import Answers
from ckptdoctor.training.carry import Carried, Carry
from ckptdoctor.training.findings import finding
from ckptdoctor.training.naming import Sides
from ckptdoctor.training.saved import leaves_inside

if TYPE_CHECKING:
    import torch
    from torch import Tensor

State = dict[str, Any]


class Stager:
    """Reads the state of one optimizer, parameter by parameter. ``close`` it, or use it as a context."""

    def __init__(self, carry: Carry, sides: Sides) -> None:
        self.carry = carry
        self.sides = sides
        leaves: dict[str, Leaf] = {}
        self._names: dict[int, str] = {}
        values = [*carry.saved.groups, *(p.slots for p in carry.saved.params)]
        for leaf in leaves_inside(values):
            self._names[id(leaf)] = str(len(leaves))
            leaves[str(len(leaves))] = leaf
        assert carry.saved.part.archive is not None  # an optimizer is in a pickled file
        self._reader = leaf_reader(carry.saved.part.archive, leaves)
        self._storages = Counter(leaf.spec.storage for leaf in leaves.values())
        self._given: set[int] = set()

    def __enter__(self) -> Stager:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def tensors(self, value: Any) -> Any:
        """A plain value with its tensors read; lists and dicts stay what they are."""
        if isinstance(value, Leaf):
            tensor = self._reader(self._names[id(value)]).clone()
            return tensor.numpy() if value.numpy else tensor
        if isinstance(value, Mapping):
            return {k: self.tensors(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.tensors(v) for v in value)
        if isinstance(value, int | float | bool | str | complex | type(None)):
            return value
        raise ApplyError(
            f"{self.carry.saved.where} holds {printable(type(value).__name__)} {printable(str(value))[:80]}, "
            "which is not made from a file; begin with a fresh optimizer: decisions=['drop-state=**']"
        )

    def state(self, carried: Carried, param: Tensor) -> State:
        """The state of one parameter. Raises :class:`ApplyError`, :class:`UndecidedError` for its steps."""
        made: State = {}
        for slot, kind in carried.slots.items():
            values = [p.slots[slot] for p in carried.sources]
            if kind == "param":
                made[slot] = self._param(slot, values, carried, param)
            else:
                made[slot] = self._one(slot, [self.tensors(v) for v in values], carried)
        return made

    def _param(self, slot: str, leaves: Sequence[Leaf], carried: Carried, param: Tensor) -> Tensor:
        moved = parse_chain(carried.ops).run([self._reader(self._names[id(leaf)]) for leaf in leaves])
        if tuple(moved.shape) != tuple(param.shape):
            raise ApplyError(
                f"`{slot}` of `{printable(carried.key)}` would be {list(moved.shape)}, the parameter "
                f"is {list(param.shape)}"
            )
        private = not carried.ops and self._private(leaves[0])
        return self._placed(moved, carried, param, private)

    def _private(self, leaf: Leaf) -> bool:
        """Whether what the reader gives of this leaf is nobody else's, so that it need not be copied."""
        new = id(leaf) not in self._given
        self._given.add(id(leaf))
        tight = leaf.spec.storage_bytes == leaf.spec.nbytes and leaf.recipe is None
        return new and tight and self._storages[leaf.spec.storage] == 1

    def _placed(self, moved: Tensor, carried: Carried, param: Tensor, private: bool) -> Tensor:
        import torch

        dtype = _dtype_for(moved.dtype, self._source_dtypes(carried), param.dtype)
        same = moved.dtype == dtype and moved.device == param.device and moved.stride() == param.stride()
        if private and same:
            return moved
        out = torch.empty_like(param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)
        return out.copy_(moved)

    def _source_dtypes(self, carried: Carried) -> set[str]:
        return {self.sides.source[s].dtype for s in self.sides.ways[carried.key][0]}

    def _one(self, slot: str, values: Sequence[Any], carried: Carried) -> Any:
        first, *others = values
        for other in others:
            if not _equal(first, other):
                raise UndecidedError(
                    f"`{slot}` differs among the parameters that `{printable(carried.key)}` is made of",
                    [_steps_differ(slot, carried, values)],
                )
        return first

    def flat(self, params: Sequence[tuple[Carried, Tensor]]) -> State:
        """LBFGS: vectors over all parameters, cut, moved, and laid end to end in the new order."""
        saved = self.carry.saved
        keys = self.carry.keys
        shapes = [self.sides.source[k].shape for k in keys]
        total = sum(prod(s) for s in shapes)
        at = {key: i for i, key in enumerate(keys)}

        def moved(value: Any) -> Any:
            import torch

            if isinstance(value, torch.Tensor) and value.dim() == 1 and value.numel() == total:
                pieces = torch.split(value, [prod(s) for s in shapes])
                parts = []
                for carried, _ in params:
                    sources = [self.sides.first(s) for s in self.sides.ways[carried.key][0]]
                    inputs = [pieces[at[s]].view(shapes[at[s]]) for s in sources]
                    parts.append(parse_chain(carried.ops).run(inputs).reshape(-1))
                return torch.cat(parts)
            if isinstance(value, list):
                return [moved(v) for v in value]
            return value

        return {slot: moved(self.tensors(value)) for slot, value in saved.params[0].slots.items()}


def _dtype_for(state: torch.dtype, sources: set[str], param: torch.dtype) -> torch.dtype:
    """Its own where the optimizer chose another than its parameter's on purpose, else the parameter's."""
    name, own = str(param).removeprefix("torch."), str(state).removeprefix("torch.")
    if not state.is_floating_point or own == name or (sources == {name} and own not in sources):
        return state
    return param


def dtype_problems(carry: Carry, sides: Sides, answers: Answers) -> list[Diagnostic]:
    """CKD604: state that would be rounded, because its parameter has a smaller dtype than it had."""
    if answers.round_dtype:
        return []
    lossy: dict[str, str] = {}
    for carried in (c for group in carry.params for c in group):
        want = sides.target[carried.key].dtype
        had = {sides.source[s].dtype for s in sides.ways.get(carried.key, ((), ()))[0]}
        for param in carried.sources:
            for slot, kind in carried.slots.items():
                leaf = param.slots[slot]
                if kind != "param" or leaf.spec.dtype == want or had == {want}:
                    continue
                if cast_class(leaf.spec.dtype, want) != "lossless":
                    lossy.setdefault(carried.key, f"{slot} {leaf.spec.dtype} -> {want}")
    if not lossy:
        return []
    return [
        finding(
            "CKD604",
            f"the optimizer state of {len(lossy)} parameters would be rounded",
            place=carry.saved.where,
            lines=[f"{printable(k)}: {words}" for k, words in list(lossy.items())[:5]],
            why="the parameters have a smaller dtype than they had; torch.optim casts without a word",
            helps=[("--state-dtype round", "let it be rounded"), ("--drop-state '**'", "begin without it")],
            keys=list(lossy),
        )
    ]


def _equal(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and same_bits(a, b)
    return type(a) is type(b) and bool(a == b)


def _steps_differ(slot: str, carried: Carried, values: Sequence[Any]) -> Diagnostic:
    words = ", ".join(str(getattr(v, "item", lambda v=v: v)()) for v in values)
    return finding(
        "CKD606",
        f"`{slot}` differs among the parameters that `{printable(carried.key)}` is made of",
        lines=[words[:200]],
        why="joined, they have one value for all, and either would be wrong for the others",
        helps=[(f"--drop-state '{printable(carried.key)}'", "begin it without state")],
        keys=[carried.key],
    )
