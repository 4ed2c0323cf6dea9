"""What a repair does to the rest of a checkpoint: nothing; what that means for an optimizer's state."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ckptdoctor.apply.staging import Expansion
from ckptdoctor.errors import ApplyError
from ckptdoctor.formats.envelope import rest_of
from ckptdoctor.keys import printable
from ckptdoctor.receipt import listing

if TYPE_CHECKING:
    from ckptdoctor.formats.base import Archive, StateDict
    from ckptdoctor.formats.envelope import Envelope
    from ckptdoctor.trees import ParamTree


def around(archive: Archive, chosen: StateDict, envelope: Envelope | None) -> tuple[str, ...]:
    """For the receipt: what of the checkpoint beside the state dict is kept, and what is left out."""
    rest = rest_of(archive, chosen)
    inside = [
        path for path in rest if chosen.path and path.startswith((f"{chosen.path}.", f"{chosen.path}["))
    ]
    if envelope is None:
        flag = (
            "; --keep-envelope keeps all in a .pth file"
            if rest and archive.format.startswith("torch-")
            else ""
        )
        return (f"left out: {listing(rest)}{flag}",) if rest else ()
    kept = [path for path in rest if path not in inside]
    notes = [f"as in {archive.path}: {listing(kept)}"] if kept else []
    return (*notes, *([f"left out: {listing(inside)}, which the model does not have"] if inside else []))


def check_positions(envelope: Envelope, expansion: Expansion, source: ParamTree, target: ParamTree) -> None:
    """Moments are saved by position: refuse to keep them beside parameters in another order or shape.

    ``torch.optim`` would load them into the wrong parameters without a word. Raises :class:`ApplyError`.
    """
    if not envelope.optimizers:
        return
    why = _moved(expansion, source, target)
    if why:
        file = printable(envelope.archive.path)
        raise ApplyError(
            f"the moments in {listing(envelope.optimizers)} of {file} go by their parameters' positions, "
            f"and {why}. Carry them by name: ckptdoctor.auto_resume({file!r}, model, optimizer), then "
            "ckptdoctor.save_checkpoint; or write the weights alone, without --keep-envelope"
        )


def _moved(expansion: Expansion, source: ParamTree, target: ParamTree) -> str:
    """Why the parameters of the model are not those of the checkpoint one by one; "" if they are."""
    places = {key: at for at, key in enumerate(source.specs)}
    fills = [f for k, f in expansion.fills.items() if target[k].kind != "buffer" and f.kind != "tie"]
    others = [f.target for f in fills if f.kind != "load" or len(f.sources) != 1 or f.ops]
    if others:
        return f"the repair makes {listing(others)} anew or of other parts"
    if expansion.unused:
        return f"the model does not have {listing(expansion.unused)}"
    late = [b.target for a, b in pairwise(fills) if places[a.sources[0]] >= places[b.sources[0]]]
    if late or not source.ordered:
        return f"the model has {listing(late or [f.target for f in fills])} in another order"
    return ""
