"""The findings about optimizer state, CKD601 to CKD608, and about resuming: words in one place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckptdoctor.diagnostics import Diagnostic, Help, Line, Severity
from ckptdoctor.keys import printable

NAMES = {
    "CKD601": "optimizer-groups",
    "CKD602": "optimizer-shape",
    "CKD603": "optimizer-orphan",
    "CKD604": "optimizer-dtype",
    "CKD605": "optimizer-device",
    "CKD606": "optimizer-step",
    "CKD607": "optimizer-order",
    "CKD608": "optimizer-not-carried",
    "CKD609": "training-part",
}


def finding(
    code: str,
    title: str,
    *,
    severity: Severity = "error",
    place: str = "",
    lines: Iterable[str] = (),
    why: str = "",
    notes: Sequence[str] = (),
    helps: Sequence[tuple[str, str]] = (),
    keys: Sequence[str] = (),
) -> Diagnostic:
    """One finding; ``helps`` are (command, words)."""
    return Diagnostic(
        code=code,
        name=NAMES[code],
        severity=severity,
        title=title,
        place=place,
        evidence=tuple(Line(text) for text in lines),
        why=why,
        notes=tuple(notes),
        helps=tuple(Help(command, words) for command, words in helps),
        keys=tuple(keys),
    )


def some(names: Iterable[str], most: int = 4) -> str:
    """A few of the names, quoted, and how many more there are."""
    shown = list(names)
    text = ", ".join(f"`{printable(n)}`" for n in shown[:most])
    return text + (f" and {len(shown) - most} more" if len(shown) > most else "")


def quote(pattern: str) -> str:
    """A key as it stands in a command."""
    return f"'{printable(pattern)}'"
