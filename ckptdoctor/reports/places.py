"""The places of findings as file and line, the way that other programs want them."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from ckptdoctor.diagnostics import Diagnostic
from ckptdoctor.keys import natural_key, printable, skeleton

_PLACE = re.compile(r"(?P<file>.+?)(?::(?P<line>[1-9][0-9]{0,8}))?(?:#.*)?", re.DOTALL)


def file_and_line(place: str) -> tuple[str, int]:
    """``("ckpt/net.tree", 4)`` of ``ckpt/net.tree:4``; line 1 when none is said, no file for no place."""
    found = _PLACE.fullmatch(place)
    if found is None:
        return "", 1
    return found["file"], int(found["line"] or 1)


def relative_uri(file: str) -> str:
    """A file's path as a relative reference (RFC 3986): what is no letter is percent-encoded."""
    return quote(file.replace("\\", "/").removeprefix("./"), safe="/-._~", errors="surrogatepass")


def message(diagnostic: Diagnostic) -> str:
    """The finding in a few lines of plain text: title, why, notes, what to do. Safe to print."""
    lines = [diagnostic.title]
    lines += [f"{line.mark} {line.text}".rstrip() for line in diagnostic.evidence[:8]]
    if diagnostic.why:
        lines.append(f"why: {diagnostic.why}")
    lines += [f"note: {note}" for note in diagnostic.notes]
    if diagnostic.fix is not None:
        lines.append(f"fix: {diagnostic.fix.text} [{diagnostic.fix.applicability}]")
    lines += [
        f"help: {h.command}  {h.text}".rstrip() if h.command else f"help: {h.text}" for h in diagnostic.helps
    ]
    return "\n".join(printable(line) for line in lines)


def fingerprint(diagnostic: Diagnostic) -> str:
    """The same for the same finding after lines have moved: rule, file, title without numbers, key names."""
    file, _ = file_and_line(diagnostic.place)
    keys = sorted({skeleton(k) for k in diagnostic.keys}, key=natural_key)
    parts = [diagnostic.code, file, skeleton(diagnostic.title), *keys]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
