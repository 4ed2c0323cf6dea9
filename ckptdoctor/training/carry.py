"""Optimizer state through the model's plan: which saved slots, by which ops, for each parameter.

An op is applied to state that has its parameter's shape, and only if it moves values without computing:
the moments of ``a + b`` or of a merged weight are no function of the saved ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.formats.content import Leaf
from ckptdoctor.keys import printable
from ckptdoctor.ops import parse_chain
from ckptdoctor.training.answers import Answers
from ckptdoctor.training.findings import finding, some
from ckptdoctor.training.naming import Named, Sides
from ckptdoctor.training.saved import SCALARS, Saved, SavedParam

# Optimizers of torch.optim whose step treats every element alone, so that a part of a moment is the
# moment of the part. Others (Adafactor, Muon, LAMB ...) look at whole tensors.
ELEMENTWISE = frozenset({
    "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SGD", "ASGD", "RMSprop", "Rprop", "Adagrad", "Adadelta",
    "SparseAdam",
})  # fmt: skip

SlotKind = Literal["param", "scalar", "whole"]


@dataclass(frozen=True, slots=True)
class Carried:
    """The state of one parameter of the optimizer at hand. Without ``sources`` it begins fresh: ``fresh``."""

    key: str
    sources: tuple[SavedParam, ...] = ()
    ops: tuple[str, ...] = ()
    slots: Mapping[str, SlotKind] = field(default_factory=dict)
    fresh: str = ""


@dataclass(frozen=True)
class Carry:
    """One optimizer: its parameters in its own order (by group), and what is left of the saved ones."""

    saved: Saved
    how: str = ""
    params: tuple[tuple[Carried, ...], ...] = ()
    unused: tuple[str, ...] = ()  # checkpoint keys whose state is left out by a decision
    problems: tuple[Diagnostic, ...] = ()
    keys: tuple[str, ...] = ()  # of the saved parameters
    dropped: bool = False  # all of it, by a decision


def carry(saved: Saved, named: Named, sides: Sides, answers: Answers, optimizer: str) -> Carry:
    """Work out the state of every parameter, or everything that stands against it."""
    if named.problems and not answers.drops(*(k for group in sides.listed for k in group)):
        return Carry(saved, problems=named.problems)
    if named.problems or answers.dropped == ("**",):
        return _all_fresh(saved, sides)
    worker = _Carrier(saved, named, sides, answers, optimizer)
    params = tuple(tuple(worker.one(key) for key in group) for group in sides.listed)
    unused = worker.left_over()
    return Carry(saved, named.how, params, unused, tuple(worker.problems()), named.keys)


def _all_fresh(saved: Saved, sides: Sides) -> Carry:
    params = tuple(tuple(Carried(k, fresh="decided") for k in group) for group in sides.listed)
    return Carry(saved, "dropped, as decided", params, dropped=True)


class _Carrier:
    def __init__(self, saved: Saved, named: Named, sides: Sides, answers: Answers, optimizer: str) -> None:
        self.saved, self.sides, self.answers, self.optimizer = saved, sides, answers, optimizer
        keys = named.keys
        self.by_key = dict(zip(keys, saved.params, strict=True)) if keys else {}
        self.used: set[str] = set()
        self.unknown: list[str] = []
        self.computed: list[tuple[str, str]] = []
        self.whole: list[tuple[str, str]] = []
        self.partly: list[str] = []
        self.odd: list[str] = []

    def one(self, key: str) -> Carried:
        sources, ops = self.sides.ways.get(key, ((), ()))
        firsts = [self.sides.first(s) for s in sources]
        if self.answers.drops(key, *firsts):
            self.used.update(firsts)
            return Carried(key, fresh="decided")
        if key in self.sides.own:
            return Carried(key, fresh="the parameter keeps its initial values")
        if not self.by_key:
            return Carried(key, fresh="the saved optimizer has no state yet")
        found = [self.by_key[s] for s in firsts if s in self.by_key]
        self.used.update(firsts)
        if len(found) != len(firsts) or not found:
            self.unknown.append(key)
            return Carried(key)
        if self.saved.flat and any(self.saved.params[0].slots):
            return self._flat(key, found, ops)
        if not any(p.slots for p in found):
            return Carried(key, tuple(found), ops, fresh="it had no state when it was saved")
        return self._slots(key, found, ops)

    def _flat(self, key: str, found: list[SavedParam], ops: tuple[str, ...]) -> Carried:
        """LBFGS keeps all parameters end to end in the first one's state; see `restore`."""
        if ops and parse_chain(ops).effect != "exact":
            self.computed.append((key, str(parse_chain(ops))))
        return Carried(key, tuple(found), ops)

    def _slots(self, key: str, found: list[SavedParam], ops: tuple[str, ...]) -> Carried:
        names = set(found[0].slots)
        if any(set(p.slots) != names for p in found):
            self.partly.append(key)
            return Carried(key)
        plain = not ops and len(found) == 1
        if not plain and parse_chain(ops).effect != "exact":
            self.computed.append((key, str(parse_chain(ops))))
            return Carried(key)
        if not plain and self.optimizer not in ELEMENTWISE:
            self.whole.append((key, str(parse_chain(ops))))
            return Carried(key)
        slots = {slot: self._kind(slot, key, found) for slot in found[0].slots}
        if not plain and "whole" in slots.values():
            self.odd.append(key)
        return Carried(key, tuple(found), ops, slots)

    def _kind(self, slot: str, key: str, found: Sequence[SavedParam]) -> SlotKind:
        values = [p.slots[slot] for p in found]
        shapes = [self.sides.source[self.sides.first(s)].shape for s in self.sides.ways[key][0]]
        if slot in SCALARS or not all(isinstance(v, Leaf) for v in values):
            return "scalar" if slot in SCALARS or all(_number(v) for v in values) else "whole"
        own = [v.spec.shape for v in values]
        if own == shapes:
            return "param"
        return "scalar" if all(s == () for s in own) else "whole"

    def left_over(self) -> tuple[str, ...]:
        """Saved parameters with state that no parameter of the optimizer takes."""
        return tuple(k for k, p in self.by_key.items() if k not in self.used and p.slots)

    def problems(self) -> list[Diagnostic]:
        found = []
        if self.unknown:
            found.append(self._unknown())
        left = [k for k in self.left_over() if not self.answers.drops(k)]
        if left:
            found.append(self._left(left))
        if self.computed:
            found.append(
                self._not_carried(
                    self.computed,
                    "are computed, and their moments are no function of the saved ones",
                )
            )
        if self.whole:
            found.append(
                self._not_carried(
                    self.whole,
                    f"are rearranged, and {self.optimizer} looks at whole tensors, not at elements",
                )
            )
        odd = [(k, "") for k in self.odd]
        if odd:
            found.append(
                self._not_carried(odd, "are rearranged, and their state has another shape than they have")
            )
        if self.partly:
            found.append(
                self._not_carried(
                    [(k, "") for k in self.partly], "are joined of some with state and some without"
                )
            )
        return found

    def _unknown(self) -> Diagnostic:
        keys = self.unknown
        return finding(
            "CKD603",
            f"{len(keys)} parameters of the optimizer have no entry in the saved one",
            place=self.saved.where,
            lines=[some(keys)],
            why="they were frozen, or not in the optimizer, when the checkpoint was saved; "
            "torch.optim refuses, or takes another parameter's state, by position",
            helps=[(f"--drop-state '{_pattern(keys)}'", "begin them without state")],
            keys=keys,
        )

    def _left(self, keys: list[str]) -> Diagnostic:
        return finding(
            "CKD603",
            f"the saved state of {len(keys)} parameters is for none of the optimizer's",
            place=self.saved.where,
            lines=[some(keys)],
            why="they are not in the model or not in its optimizer any more (frozen?)",
            helps=[(f"--drop-state '{_pattern(keys)}'", "leave their state out")],
            keys=keys,
        )

    def _not_carried(self, rows: list[tuple[str, str]], why: str) -> Diagnostic:
        keys = [k for k, _ in rows]
        return finding(
            "CKD608",
            f"the optimizer state of {len(keys)} parameters cannot be carried through the plan",
            place=self.saved.where,
            lines=[printable(k) + (f"  {ops}" if ops else "") for k, ops in rows[:5]],
            why=f"they {why}",
            helps=[(f"--drop-state '{_pattern(keys)}'", "begin them without state")],
            keys=keys,
        )


def _pattern(keys: Sequence[str]) -> str:
    """A pattern for a flag: the one key, or the module that holds all of them, or everything."""
    if len(keys) == 1:
        return printable(keys[0])
    parts = [k.split(".") for k in keys]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return printable(".".join([*common, "**"]))


def _number(value: Any) -> bool:
    return isinstance(value, int | float | bool | str | type(None))
