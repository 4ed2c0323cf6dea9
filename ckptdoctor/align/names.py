"""Names as evidence: words, numbers and concepts of a key. The vocabulary is `synonyms.toml`."""

from __future__ import annotations

import re
import tomllib
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain
from typing import NamedTuple

# `3x3` is the size of a kernel: a word, and no number that counts. The last row: any other script.
_WORDS = re.compile(
    r"\d+x\d+|\d+|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+"
    r"|[^\W\d_a-zA-Z]+"
)
_DIMENSIONED = re.compile(r"(conv|norm|bn|pool|drop|dropout|batchnorm|instancenorm)([123])d", re.I)

_LETTERS = tuple("abcdef")

Token = str | int


@cache
def table() -> dict[str, dict[str, list[str]]]:
    """The synonyms, read once."""
    text = (files("ckptdoctor.align") / "synonyms.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def _phrases() -> dict[tuple[str, ...], str]:
    concepts = table()["concepts"]
    return {tuple(p.split()): name for name, spellings in concepts.items() for p in spellings}


@cache
def _number_words() -> dict[str, int]:
    numbers = table()["numbers"]
    return {w: i for words in numbers.values() for i, w in enumerate(words)}


@lru_cache(maxsize=65536)
def words(segment: str) -> tuple[Token, ...]:
    """Words and numbers of one segment: ``encoder_layer_0`` -> ``("encoder", "layer", 0)``."""
    plain = _DIMENSIONED.sub(r"\1", segment)
    found: list[Token] = [
        int(w) if w.isdecimal() and len(w) < 10 else w.lower() for w in _WORDS.findall(plain)
    ]
    if not found:
        return (segment,)  # signs only: still a name
    if len(found) > 2 and "v" in found[1:]:
        found = _versions(found)  # `pvt_v2` is a version, not a value projection
    spelt = _number_words()
    tokens = [spelt.get(w, w) if isinstance(w, str) else w for w in found]
    last = tokens[-1] if tokens else None
    if isinstance(last, str) and last in _LETTERS:
        tokens[-1] = _LETTERS.index(last)  # conv_a, conv_b, f.a, f.b: letters that count
    expand = table()["expand"]
    return tuple(w for t in tokens for w in (expand.get(t, [t]) if isinstance(t, str) else [t]))


def _versions(tokens: list[Token]) -> list[Token]:
    out: list[Token] = []
    for token in tokens:
        if isinstance(token, int) and len(out) > 1 and out[-1] == "v":
            out[-1] = f"version{token}"
        else:
            out.append(token)
    return out


@lru_cache(maxsize=65536)
def concepts_of(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """Replace spellings by their concept, longest first; unknown words and numbers stay."""
    phrases = _phrases()
    out: list[Token] = []
    i = 0
    while i < len(tokens):
        for n in (5, 4, 3, 2, 1):
            piece = tokens[i : i + n]
            concept = phrases.get(piece) if len(piece) == n else None  # type: ignore[arg-type]
            if concept is not None:
                out.append(concept)
                i += n
                break
        else:
            out.append(tokens[i])
            i += 1
    return tuple(out)


@cache
def exclusive_groups() -> dict[str, str]:
    """Concept -> the group whose members exclude each other."""
    return {c: group for group, members in table()["exclusive"].items() for c in members}


@cache
def _leaf_roles() -> dict[str, str]:
    return {s: role for role, spellings in table()["leaves"].items() for s in spellings}


def leaf_role(leaf: str) -> str | None:
    """``kernel`` -> ``weight``; None when the word is not a usual tensor name of a module."""
    return _leaf_roles().get(leaf)


@cache
def _derived() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(k.split(".")) for k in table()["derived"]["keys"])


@cache
def _derived_leaves() -> frozenset[str]:
    return frozenset(d[-1] for d in _derived())


def is_derived(key: str) -> bool:
    """Whether the key names a buffer that models compute for themselves."""
    if key.rpartition(".")[2] not in _derived_leaves():
        return False
    segments = tuple(key.split("."))
    return any(segments[-len(d) :] == d for d in _derived())


@cache
def _training_leaves() -> frozenset[str]:
    return frozenset(table()["training"]["ends"])


def is_training_state(key: str) -> bool:
    """Whether the key's last segment names optimizer or averaging state."""
    return key.replace("/", ".").rpartition(".")[2].partition(":")[0] in _training_leaves()


class Name(NamedTuple):
    """A module's path as evidence.

    ``concepts`` holds one tuple per segment; ``numbers`` all numbers in order; ``skeleton`` the
    concepts with every number replaced by ``#``; ``flat`` words and numbers in one sequence, as
    spelt, and ``steps`` the same in concepts.
    """

    path: str
    concepts: tuple[tuple[Token, ...], ...]
    numbers: tuple[int, ...]
    skeleton: str
    flat: tuple[Token, ...]
    steps: tuple[Token, ...]


@lru_cache(maxsize=65536)
def _segment(text: str) -> tuple[tuple[Token, ...], tuple[int, ...], str, tuple[Token, ...]]:
    """Concepts, numbers, skeleton and words of one segment; large trees have few different ones."""
    tokens = words(text)
    concepts = concepts_of(tokens)
    skeleton = "_".join("#" if isinstance(t, int) else t for t in concepts)
    return concepts, tuple(t for t in tokens if isinstance(t, int)), skeleton, tokens


@lru_cache(maxsize=65536)
def name_of(path: str) -> Name:
    """Read a path."""
    if not path:
        return Name(path, (), (), "", (), ())
    concepts, counted, skeletons, tokens = zip(*map(_segment, path.split(".")), strict=True)
    return Name(
        path,
        concepts,
        tuple(chain.from_iterable(counted)),
        ".".join(skeletons),
        tuple(chain.from_iterable(tokens)),
        tuple(chain.from_iterable(concepts)),
    )


def unnumbered(path: tuple[str, ...]) -> tuple[str, ...]:
    """The segments without the numbers of lists: the same in every block."""
    return tuple("#" if segment.isdecimal() else segment for segment in path)


def exclusive_values(name: Name) -> dict[str, Token]:
    """Group -> the value nearest to the leaf."""
    found: dict[str, Token] = {}
    for segment in name.concepts:
        for group, whole in _segment_values(segment):
            if whole is None:
                found.pop(group, None)  # several at once say nothing
            else:
                found[group] = whole
    return found


@lru_cache(maxsize=65536)
def _segment_values(segment: tuple[Token, ...]) -> tuple[tuple[str, str | None], ...]:
    """What one segment says of each exclusive group; None where it says several things at once."""
    groups = exclusive_groups()
    here: dict[str, set[str]] = {}
    for token in segment:
        group = groups.get(token) if isinstance(token, str) else None
        if group is not None and isinstance(token, str):
            here.setdefault(group, set()).add(token)
    return tuple(
        (group, _WHOLES.get(frozenset(values)) if len(values) > 1 else next(iter(values)))
        for group, values in here.items()
    )


_WHOLES = {
    frozenset({"q", "k", "v"}): "qkv",
    frozenset({"k", "v"}): "kv",
    frozenset({"gate", "up"}): "gateup",
}
