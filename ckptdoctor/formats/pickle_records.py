"""Tensor records as ``torch.save`` writes them, as regular expressions over a pickle's opcodes.

What they match leaves one object of no weight on the unpickler's stack and only small tuples in its memo.
Lengths are spelled out, because an expression that took the wrong number of bytes for a text would see
other opcodes than the unpickler does.
"""

from __future__ import annotations

import re
from functools import cache

from ckptdoctor.formats.pickle_scan import FindAll, Match

LONGEST_KEY = 120


@cache
def record(bound: int) -> Match:
    """Matches one rebuilt tensor of known shape, without the byte of MEMOIZE inside an argument.

    Memo indices are below ``bound`` (rounded up to a multiple of 65,536).
    """
    put = rb"(?:q[^\x94]|r[^\x94]{2}" + _high(bound) + rb"|\x94)?"
    lengths = [5, 3, 4, 6, 1, 2, *range(7, 24)]  # storage keys and location tags
    text = _text(lengths, rb"[^\x94]") + rb"|\x8c(?:%s)" % b"|".join(
        rb"\x%02x[^\x94]{%d}" % (n, n) for n in lengths
    )
    return re.compile(_whole(rb"[^\x94]", put, b"(?:" + text + b")"), re.S).match


@cache
def run(bound: int) -> tuple[Match, FindAll]:
    """A match of a run of keys, each with its tensor, and a way to take such a run apart.

    The memo is numbered by LONG_BINPUT from 256 on, and what is taken from it with BINGET is below that: the
    run changes nothing that it uses. Each row is (key, function and type, storage key, location and numel,
    offset, size, stride, flag and hooks), the keys with the four bytes of their length.
    """
    return re.compile(b"(?:" + _row(bound, b"") + b")++", re.S).match, re.compile(
        _row(bound, b"("), re.S
    ).findall


def _row(bound: int, group: bytes) -> bytes:
    def part(inside: bytes) -> bytes:
        return group + inside + b")" if group else inside

    def text(lengths: list[int]) -> bytes:
        spelled = b"|".join(rb"\x%02x\0\0\0.{%d}" % (n, n) for n in lengths)
        return b"X" + (group or b"(?:") + spelled + b")"

    third, fourth = min(bound >> 16, 0xFF), min(bound >> 24, 0xFF)
    put = rb"r.(?:[^\0][\0-\x%02x]|\0[\1-\x%02x])[\0-\x%02x]" % (third, third, fourth)
    integer = rb"(?:K.|M..|J.{4})"
    size = rb"(?:I\x85|II\x86|III\x87|\)|\(I{0,12}t)"
    keys, short = text([*range(12, 72), *range(1, 12), *range(72, LONGEST_KEY)]), text([*range(1, 16)])
    pieces = (
        keys, b"P", part(rb"G\(\(GG"), short, b"P", part(b"GI"), b"tPQ", part(b"I"),
        part(size), b"(?:P)?", part(size), b"(?:P)?", part(rb"[\x88\x89]G"), rb"\)RPtPRP",
    )  # fmt: skip
    made = b""
    for piece in pieces:
        if piece not in (keys, short):
            piece = piece.replace(b"I", integer).replace(b"G", b"h.").replace(b"P", put)
        made += piece
    return made


def _high(bound: int) -> bytes:
    """The upper two bytes of a memo index."""
    third, fourth = min(bound >> 16, 0xFF), min(bound >> 24, 0xFF)
    return rb"[\x00-\x%02x][\x00-\x%02x]" % (third, fourth)


def _text(lengths: list[int], byte: bytes) -> bytes:
    return rb"X(?:%s)" % b"|".join(rb"\x%02x\0\0\0%s{%d}" % (n, byte, n) for n in lengths)


def _whole(byte: bytes, put: bytes, text: bytes) -> bytes:
    """GLOBAL by GET, MARK, MARK, "storage", type, key, location, numel, TUPLE, BINPERSID, offset, size ..."""
    get = rb"(?:h%s|j%s{4})" % (byte, byte)
    integer = rb"(?:K%s|M%s{2}|J%s{4})" % (byte, byte, byte)
    size = rb"(?:I\x85P|II\x86P|III\x87P|\)|\(I{0,12}tP|G)"
    whole = rb"G\(\(GG(?:G|VP)(?:G|VP)IN?tPQISS[\x88\x89]G\)RPG?tPRP".replace(b"S", size)
    for letter, spelled in ((b"I", integer), (b"G", get), (b"P", put), (b"V", text)):
        whole = whole.replace(letter, spelled)
    return whole
