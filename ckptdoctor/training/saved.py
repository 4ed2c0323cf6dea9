"""An optimizer's state as a file has it: parameters in order, each with its slots. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ckptdoctor.formats.content import Leaf
from ckptdoctor.training.source import Part

# Slots that are one number for a parameter, whatever its shape (torch.optim: step of all, eta and mu of
# ASGD, mu_product of NAdam).
SCALARS = frozenset({"step", "eta", "mu", "mu_product"})
# bitsandbytes keeps moments as 8-bit codes with a scale for each block.
QUANTIZED = frozenset({"state1", "qmap1", "absmax1", "state2", "qmap2", "absmax2"})


@dataclass(frozen=True, slots=True)
class SavedParam:
    """One parameter of the saved optimizer: its position over all groups, its group, its state."""

    position: int
    group: int
    name: str | None
    slots: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, Leaf]:
        """The slots that are one tensor."""
        return {slot: v for slot, v in self.slots.items() if isinstance(v, Leaf)}

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The parameter's shape as its state shows it; None where it does not."""
        tensors = {slot: leaf for slot, leaf in self.tensors.items() if slot not in SCALARS}
        if "row_var" in tensors and "col_var" in tensors:
            row, column = tensors["row_var"].spec.shape, tensors["col_var"].spec.shape
            return (*row[:-1], column[-1]) if row and column else None
        shapes = {leaf.spec.shape for leaf in tensors.values()}
        return next(iter(shapes)) if len(shapes) == 1 else None


@dataclass(frozen=True)
class Saved:
    """One saved optimizer. ``orphans`` are state entries of no group's parameter."""

    part: Part
    label: str  # "" or its name among several
    groups: tuple[Mapping[str, Any], ...]  # without "params" and "param_names"
    params: tuple[SavedParam, ...]
    orphans: tuple[str, ...]

    @property
    def where(self) -> str:
        """For messages: the place in the file."""
        return self.part.where + (f" {self.label}" if self.label else "")

    @property
    def named(self) -> bool:
        """Whether every parameter has its name."""
        return bool(self.params) and all(p.name is not None for p in self.params)

    @property
    def slots(self) -> frozenset[str]:
        """All slot names."""
        return frozenset(slot for p in self.params for slot in p.slots)

    @property
    def flat(self) -> bool:
        """LBFGS: one state over all parameters laid end to end."""
        return all("history_size" in g and "tolerance_grad" in g for g in self.groups) and bool(self.groups)

    @property
    def quantized(self) -> bool:
        """8-bit codes in place of moments."""
        return bool(self.slots & {"absmax1", "qmap1"}) or any(
            leaf.spec.dtype == "uint8" and slot in QUANTIZED
            for p in self.params
            for slot, leaf in p.tensors.items()
        )

    def sizes(self) -> list[int]:
        """Parameters per group."""
        return [sum(p.group == g for p in self.params) for g in range(len(self.groups))]


def read_saved(part: Part, value: Mapping[str, Any], label: str = "") -> Saved | str:
    """The optimizer in a plain value, or in words why it is none that can be read."""
    groups = value["param_groups"]
    if not all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups):
        return "its param_groups are not those of torch.optim"
    state = value["state"]
    params: list[SavedParam] = []
    used: set[Any] = set()
    for number, group in enumerate(groups):
        names = group.get("param_names")
        fits = isinstance(names, list) and len(names) == len(group["params"])
        for i, key in enumerate(group["params"]):
            if not isinstance(key, int | str) or key in used:
                return f"a parameter is listed as {str(key)[:40]!r}, which is no index, or twice"
            used.add(key)
            own = key if isinstance(key, str) and not key.isdigit() else None
            name = own or (names[i] if fits and isinstance(names[i], str) and names[i] else None)
            slots = state.get(key, {})
            if not isinstance(slots, Mapping):
                return "the state of a parameter is no mapping"
            params.append(SavedParam(len(params), number, name, {str(k): v for k, v in slots.items()}))
    plain = tuple({k: v for k, v in g.items() if k not in ("params", "param_names")} for g in groups)
    orphans = tuple(str(k) for k in state if k not in used)
    return Saved(part, label, plain, tuple(params), orphans)


def flat_size(param_shapes: list[tuple[int, ...]]) -> int:
    """Values of all parameters together."""
    return sum(prod(s) for s in param_shapes)


def leaves_inside(value: Any) -> Iterator[Leaf]:
    """The tensors of one slot, which may be a list of them (LBFGS)."""
    if isinstance(value, Leaf):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves_inside(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves_inside(item)
