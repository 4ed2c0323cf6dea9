"""The whole alignment as a table (``--expand``): every model key and where its values come from."""

from __future__ import annotations

from ckptdoctor.align.model import Match
from ckptdoctor.diagnosis import Diagnosis
from ckptdoctor.keys import printable
from ckptdoctor.reports.page import Page

_STYLES = {"safe": "plus", "unsafe": "warning", "undecided": "error", "missing": "minus", "kept": "grey"}


def expand_page(diagnosis: Diagnosis) -> Page:
    """One line a model key, then one a checkpoint key that stays unused. Nothing is folded or cut."""
    page = Page()
    alignment = diagnosis.alignment
    if alignment is None:
        page.add("no state dict was chosen, so nothing is aligned")
        return page
    matches = list(alignment.matches.values())
    column = max((len(printable(m.target)) for m in matches), default=0)
    for match in matches:
        page.add(
            (f"{match.status:9} ", _STYLES[match.status]),
            f"{printable(match.target):{column}}  {_origin(match)}",
        )
    for unused in alignment.unused.values():
        page.add(("unused    ", "grey"), f"{printable(unused.source)}  ({printable(unused.reason)})")
    page.add("")
    return page


def _origin(match: Match) -> str:
    if match.sources:
        ops = f"  | {' | '.join(match.ops)}" if match.ops else ""
        return f"<- {printable(' + '.join(match.sources))}{printable(ops)}"
    if match.choices:
        return "<- one of " + printable(" or ".join(" + ".join(c.sources) for c in match.choices[:4]))
    return f"   {printable('; '.join(match.evidence))}".rstrip()
