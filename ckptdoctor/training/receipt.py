"""The record of a resumed training status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptdoctor.receipt import Receipt, plural


@dataclass(frozen=True)
class OptimizerReceipt:
    """What one optimizer got: how many parameters with state, how many begin fresh (and why), and notes."""

    name: str
    kind: str  # "AdamW"
    carried: int
    moved: int  # of these, how many went through ops
    fresh: Mapping[str, str] = field(default_factory=dict)  # model key -> why it has no state
    unused: tuple[str, ...] = ()  # checkpoint keys whose state is left out
    how: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.kind}: state of {plural(self.carried, 'parameter')}"
        text += f", {self.moved} of them rearranged" if self.moved else ""
        text += f", {len(self.fresh)} begin without" if self.fresh else ""
        return text + (f" ({self.how})" if self.how else "")

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "carried": self.carried,
            "moved": self.moved,
            "fresh": dict(self.fresh),
            "unused": list(self.unused),
            "how": self.how,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class ResumeReceipt:
    """What :func:`ckptdoctor.auto_resume` restored. ``str(receipt)`` is short.

    ``model`` (and ``ema``) is the receipt of the weights; ``restored`` names what else was loaded.
    ``epoch`` and ``iteration`` are as the file counts them, None where it does not say. ``entries`` holds all
    the rest of the file: hyperparameters, metrics, states of random generators ...
    """

    model: Receipt
    ema: Receipt | None = None
    optimizers: tuple[OptimizerReceipt, ...] = ()
    restored: tuple[str, ...] = ()
    epoch: int | float | None = None
    iteration: int | None = None
    entries: Mapping[str, Any] = field(default_factory=dict)
    layout: str = ""
    decisions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from ckptdoctor.keys import printable

        lines = [str(self.model)]
        lines += [f"EMA: {line}" for line in str(self.ema).splitlines()[:1]] if self.ema is not None else []
        lines += [f"optimizer{f' {o.name}' if o.name else ''}: {o}" for o in self.optimizers]
        others = [r for r in self.restored if r not in ("model", "ema", "optimizer")]
        lines += [f"also restored: {', '.join(others)}"] if others else []
        counts = [
            f"{name} {value}"
            for name, value in (("epoch", self.epoch), ("iteration", self.iteration))
            if value is not None
        ]
        lines += [f"continues at {', '.join(counts)}"] if counts else []
        lines += [f"note: {printable(note)}" for o in self.optimizers for note in o.notes]
        lines += [f"note: {printable(note)}" for note in self.notes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON; of the entries only their names."""
        return {
            "format": 1,
            "model": self.model.to_dict(),
            "ema": self.ema.to_dict() if self.ema is not None else None,
            "optimizers": [o.to_dict() for o in self.optimizers],
            "restored": list(self.restored),
            "epoch": self.epoch,
            "iteration": self.iteration,
            "entries": list(self.entries),
            "layout": self.layout,
            "decisions": list(self.decisions),
            "notes": list(self.notes),
        }
