"""Short words for what a file holds. Names from files are untrusted text and are escaped here."""

from __future__ import annotations

from ckptdoctor.keys import printable

LONGEST = 80


def show(text: object, limit: int = 200) -> str:
    """`text` as one printable line, control and bidi characters escaped, cut to `limit`."""
    line = str(text)  # may be long
    if len(line) > limit:
        line = line[: limit - 3] + "..."
    return printable(line)


def size_words(nbytes: int) -> str:
    """1234567 -> "1.2 MB"."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def plural(count: int, noun: str) -> str:
    """(1, "key") -> "1 key", (2, "key") -> "2 keys"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1] + 'ies' if noun.endswith('y') and noun[-2] not in 'aeiou' else noun + 's'}"


def listing(names: list[str] | tuple[str, ...], limit: int = 4) -> str:
    """The first few names, and how many more."""
    shown = ", ".join(show(n, LONGEST) for n in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
