"""The record of what was done: which model key got which checkpoint keys, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

Action = Literal["loaded", "kept", "reinitialised", "tied"]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A forward pass that gave what was expected: how much was compared, how, and the largest difference.

    ``atol`` is the widest of those that the outputs were given.
    """

    outputs: int
    values: int
    rtol: float
    atol: float
    largest: float

    def __str__(self) -> str:
        return (
            f"{plural(self.values, 'value')} of {plural(self.outputs, 'output')} as expected within "
            f"rtol={self.rtol:g}, atol={self.atol:g} (largest difference {self.largest:.3g})"
        )


class Entry(NamedTuple):
    """One model key: what was done, and from which checkpoint keys (``tied``: from which model key)."""

    target: str
    action: Action
    sources: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    numel: int = 0
    dtype_from: str = ""  # "" where nothing was read
    dtype_to: str = ""
    cast: str = "lossless"  # lossless, rounding; the others only when a decision accepted them

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "target": self.target,
            "action": self.action,
            "sources": list(self.sources),
            "ops": list(self.ops),
            "dtype": [self.dtype_from, self.dtype_to],
            "cast": self.cast,
        }


@dataclass(frozen=True)
class Receipt:
    """What :func:`ckptdoctor.auto_load` and :func:`ckptdoctor.apply` did. ``str(receipt)`` is short.

    It exists only when everything held: each loaded tensor was compared with the file, bit for bit.
    """

    source: str  # the checkpoint file
    state_dict: str = ""  # path of the state dict inside it, "" the file itself
    target: str = ""  # the model, in words
    out: str = ""  # the file that was written, "" when a live model was filled
    entries: tuple[Entry, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)  # checkpoint key -> why it is not used
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # risks that no shape shows, as the plan named them
    probe: ProbeResult | None = None  # forward parity, when it was asked for
    verified: bool = True  # False: neither checksums nor bits were compared, as was asked

    def count(self, action: Action) -> int:
        """How many model keys were ``loaded``, ``kept``, ``reinitialised`` or ``tied``."""
        return sum(e.action == action for e in self.entries)

    @property
    def loaded(self) -> int:
        """Model keys filled from the checkpoint."""
        return self.count("loaded")

    @property
    def kept(self) -> int:
        """Derived buffers that stay as the model made them."""
        return self.count("kept")

    @property
    def reinitialised(self) -> int:
        """Model keys left at their initial values by a decision."""
        return self.count("reinitialised")

    @property
    def tied(self) -> int:
        """Model keys that are the same tensor as another one."""
        return self.count("tied")

    @property
    def numel(self) -> int:
        """Values loaded."""
        return sum(e.numel for e in self.entries if e.action == "loaded")

    @property
    def casts(self) -> dict[str, int]:
        """Casts by class: how many tensors changed their dtype losslessly, with rounding ..."""
        return dict(Counter(e.cast for e in self.entries if e.dtype_from and e.dtype_from != e.dtype_to))

    def __str__(self) -> str:
        from ckptdoctor.keys import printable

        where = self.source + (f" [{self.state_dict}]" if self.state_dict else "")
        into = self.out or self.target or "the model"
        lines = [f"loaded {plural(self.loaded, 'tensor')} ({self.numel:,} values) from {where} into {into}"]
        rest = [
            f"{count} {word}"
            for count, word in (
                (self.tied, "tied"),
                (self.kept, "kept (derived)"),
                (self.reinitialised, "left at initial values"),
                (len(self.unused), "of the checkpoint unused"),
            )
            if count
        ]
        if rest:
            lines.append("also " + ", ".join(rest))
        if self.casts:
            lines.append("cast " + ", ".join(f"{n} {name}" for name, n in sorted(self.casts.items())))
        lines += [f"warning: {printable(words)}" for words in self.warnings]
        lines += [f"note: {printable(words)}" for words in self.notes]
        if self.probe is not None:
            lines.append(f"probe: {self.probe}")
        lines.append(
            "verified: strict, every loaded tensor equals the file's bit for bit after the plan's ops"
            if self.verified
            else "not verified, as asked: strict, but neither checksums nor bits were compared"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, with one entry per model key."""
        return {
            "format": 1,
            "source": self.source,
            "state_dict": self.state_dict,
            "target": self.target,
            "out": self.out,
            "loaded": self.loaded,
            "kept": self.kept,
            "reinitialised": self.reinitialised,
            "tied": self.tied,
            "values": self.numel,
            "casts": self.casts,
            "verified": self.verified,
            "unused": dict(self.unused),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "probe": asdict(self.probe) if self.probe is not None else None,
            "entries": [entry.to_dict() for entry in self.entries],
        }


def plural(count: int, word: str) -> str:
    """``1 tensor``, ``1,000 tensors``."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def listing(keys: Iterable[str], most: int = 5) -> str:
    """Untrusted keys for a message: quoted, escaped, at most ``most`` of them."""
    from ckptdoctor.keys import printable

    found = list(keys)
    words = ", ".join(f"`{printable(key)}`" for key in found[:most])
    return words + (f" and {len(found) - most} more" if len(found) > most else "")
