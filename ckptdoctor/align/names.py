"""Names as evidence: words, numbers and concepts of a key. The vocabulary is `synonyms.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache, cached_property, lru_cache
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
            concept = phrases.get(piece) if len(piece) == n else None  # type: ignore[arg-type]  # a slice of that many
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
def soft_groups() -> dict[str, float]:
    """Those groups that only speak against a pair -> how much."""
    return {group: float(weight) for weight, groups in table()["soft"].items() for group in groups}


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


class Form:
    """What the names of equal blocks have in common: concepts in which every number is 0.

    Made once for all of them, so that what is found out of it is found once and kept by it.
    """

    def __init__(self, concepts: tuple[tuple[Token, ...], ...], skeleton: str) -> None:
        self.concepts = concepts
        self.skeleton = skeleton

    @cached_property
    def words(self) -> frozenset[Token]:
        """All words of it."""
        return frozenset(t for segment in self.concepts for t in segment if isinstance(t, str))

    @cached_property
    def last(self) -> tuple[Token, ...]:
        """The last segment that is more than a number."""
        for segment in reversed(self.concepts):
            if any(isinstance(t, str) for t in segment):
                return segment
        return ()

    @cached_property
    def values(self) -> Mapping[str, Token]:
        """Exclusive group -> the value nearest to the leaf."""
        found: dict[str, Token] = {}
        for segment in self.concepts:
            for group, whole in _segment_values(segment):
                if whole is None:
                    found.pop(group, None)  # several at once say nothing
                else:
                    found[group] = whole
        return found


class Name(NamedTuple):
    """A module's path as evidence.

    ``concepts`` holds one tuple per segment; ``numbers`` all numbers in order; ``skeleton`` the
    concepts with every number replaced by ``#``; ``flat`` words and numbers in one sequence, as
    spelt, and ``steps`` the same in concepts. ``places`` says where in ``flat`` the numbers are.
    """

    path: str
    concepts: tuple[tuple[Token, ...], ...]
    numbers: tuple[int, ...]
    skeleton: str
    flat: tuple[Token, ...]
    steps: tuple[Token, ...]
    form: Form
    places: tuple[int, ...]


class _Segment(NamedTuple):
    concepts: tuple[Token, ...]
    numbers: tuple[int, ...]
    skeleton: str
    tokens: tuple[Token, ...]
    blank: tuple[Token, ...]  # the concepts, every number 0


@lru_cache(maxsize=65536)
def _segment(text: str) -> _Segment:
    """What one segment says; large trees have few different ones."""
    tokens = words(text)
    concepts = concepts_of(tokens)
    skeleton = "_".join("#" if isinstance(t, int) else t for t in concepts)
    blank = tuple([0 if isinstance(t, int) else t for t in concepts])
    return _Segment(concepts, tuple(t for t in tokens if isinstance(t, int)), skeleton, tokens, blank)


_NAMELESS = Name("", (), (), "", (), (), Form((), ""), ())
_DEEPEST = 40  # segments; what is nested deeper is read without the names above it


def read_name(path: str) -> Name:
    """Read a path, from the name above, which its siblings have read already."""
    above, dot, last = path.rpartition(".")
    if not dot:
        return _below(_NAMELESS, path, _segment(path)) if path else _NAMELESS
    if not above:
        return _below(_below(_NAMELESS, "", _segment("")), path, _segment(last))
    if path.count(".") < _DEEPEST:
        return _below(name_of(above), path, _segment(last))
    found = [_segment(text) for text in path.split(".")]
    concepts, counted, skeletons, tokens, blanks = zip(*found, strict=True)
    flat, steps = tuple(chain.from_iterable(tokens)), tuple(chain.from_iterable(concepts))
    form, numbers = Form(blanks, ".".join(skeletons)), tuple(chain.from_iterable(counted))
    places = tuple([i for i, t in enumerate(flat) if isinstance(t, int)])
    return Name(path, concepts, numbers, form.skeleton, flat, steps, form, places)


# For paths that are asked for more than once, soon after: siblings come together.
name_of = lru_cache(maxsize=8192)(read_name)


def _below(above: Name, path: str, segment: _Segment) -> Name:
    form = _form(above.form, segment.blank, segment.skeleton)
    numbers, places = above.numbers, above.places
    if segment.numbers:
        numbers += segment.numbers
        places += tuple([i for i, t in enumerate(segment.tokens, len(above.flat)) if isinstance(t, int)])
    flat = above.flat + segment.tokens
    # As spelt and in concepts is usually the same, and kept once.
    same = above.steps is above.flat and segment.tokens == segment.concepts
    steps = flat if same else above.steps + segment.concepts
    concepts = (*above.concepts, segment.concepts)
    return Name(path, concepts, numbers, form.skeleton, flat, steps, form, places)


@lru_cache(maxsize=65536)
def _form(above: Form, blank: tuple[Token, ...], skeleton: str) -> Form:
    whole = f"{above.skeleton}.{skeleton}" if above.concepts else skeleton
    return Form((*above.concepts, blank), whole)


def unnumbered(path: tuple[str, ...]) -> tuple[str, ...]:
    """The segments without the numbers of lists: the same in every block."""
    return tuple("#" if segment.isdecimal() else segment for segment in path)


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
