"""Who loads checkpoints, and what each of them lets pass without an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckptdoctor.settings.model import Consumer
from ckptdoctor.trees import ParamTree


@dataclass(frozen=True)
class Tolerance:
    """What a loader takes without an error, and what becomes of it."""

    missing: bool
    unexpected: bool
    words: str


# torch: Module.load_state_dict. DCP: DefaultLoadPlanner with allow_partial_load=False (torch 2.13,
# distributed/checkpoint/default_planner.py): a missing key raises, one that nobody asks for is not read.
# transformers: from_pretrained (5.x, modeling_utils.py) logs both and initialises what is missing.
TOLERANCES: dict[Consumer, Tolerance] = {
    "torch-strict": Tolerance(False, False, "load_state_dict(strict=True)"),
    "torch-non-strict": Tolerance(True, True, "load_state_dict(strict=False) says nothing"),
    "dcp": Tolerance(False, True, "torch.distributed.checkpoint does not read what nobody asks for"),
    "transformers": Tolerance(True, True, "from_pretrained logs a warning and initialises what is missing"),
}


@dataclass(frozen=True)
class Plainly:
    """How two trees differ when names are taken as they are."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def passes(self, consumers: Sequence[Consumer]) -> bool:
        """Whether every one of these loads the checkpoint as it is, with or without a warning."""
        return not self.mismatched and all(
            (TOLERANCES[c].missing or not self.missing) and (TOLERANCES[c].unexpected or not self.unexpected)
            for c in consumers
        )


def plainly(source: ParamTree, target: ParamTree) -> Plainly:
    """Compare by name and shape, as ``load_state_dict`` does; extra state counts as keys."""
    have, want = {*source.specs, *source.extra}, {*target.specs, *target.extra}
    return Plainly(
        tuple(k for k in (*target.specs, *target.extra) if k not in have),
        tuple(k for k in (*source.specs, *source.extra) if k not in want),
        tuple(k for k, s in target.specs.items() if k in source.specs and source.specs[k].shape != s.shape),
    )
