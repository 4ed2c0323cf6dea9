"""The opcodes of a pickle by the bytes that follow them and what they take (``Lib/pickletools.py``)."""

from __future__ import annotations

GET, STOP, TEXT = ord("h"), ord("."), ord("X")
GETS, TEXTS = frozenset(b"hj"), frozenset(b"X\x8c")
# Bytes of the argument; none where an opcode is not here.
FIXED = {
    ord("K"): 1, ord("M"): 2, ord("J"): 4, ord("G"): 8, ord("h"): 1, ord("j"): 4, ord("q"): 1, ord("r"): 4,
    0x80: 1, 0x95: 8,
}  # fmt: skip
# Bytes of the length of the argument.
SIZED = {
    ord("X"): 4, 0x8C: 1, 0x8D: 8, ord("T"): 4, ord("U"): 1, ord("B"): 4, ord("C"): 1, 0x8E: 8, 0x96: 8,
    0x8A: 1, 0x8B: 4,
}  # fmt: skip
CALLS = {ord("R"): 2, 0x81: 2, 0x92: 3, 0x93: 2, ord("Q"): 1}  # objects of which one becomes
PUSHED = {
    op: 1 + FIXED.get(op, 0) for op in b"KMJGN\x88\x89]}\x8f)"
}  # bytes of all that only push one object
