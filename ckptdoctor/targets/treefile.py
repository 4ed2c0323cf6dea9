r"""``.tree`` files: a tree as text that is reviewed and merged like code.

    # ckptdoctor tree 1
    bn1.{bias,weight}              f32[64]  param
    bn1.running_mean               f32[64]  buffer
    conv1.weight                   f32[64,3,7,7]  param
    lm_head.weight                 f32[50257,768]  param = wte.weight
    stages.0.{1..2}.conv1.weight   f32[64,256,1,1]  param

One group of keys a line, folded exactly and sorted naturally; no totals and no digests, so that two
branches merge line by line. ``param``, ``buffer`` or nothing (unknown) is the kind, ``transient`` a
buffer that is not in the state dict, ``= key`` says that both are one tensor, ``extra`` an entry that
is no tensor. Key order, devices, strides, modules and versions are not kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ckptdoctor.errors import ReadError, TargetError
from ckptdoctor.keys import escape, fold, natural_key, printable, unfold
from ckptdoctor.keys.grammar import PatternError
from ckptdoctor.trees import Kind, ParamTree, TensorSpec

HEADER = "# ckptdoctor tree 1"
COLUMN = 48  # fixed, because a column as wide as the longest key would change every line

_SHORT = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8",
    "uint64": "u64", "uint32": "u32", "uint16": "u16", "uint8": "u8",
    "complex128": "c128", "complex64": "c64", "complex32": "c32",
}  # fmt: skip
_LONG = {short: dtype for dtype, short in _SHORT.items()}
_SPEC = re.compile(r"(?P<dtype>[A-Za-z]\w*)\[(?P<shape>(\d+(,\d+)*)?)\]")
_DTYPE = re.compile(r"b?float\d+\w*|u?int\d+|bits\d+\w*|complex\d+|qu?int\d+\w*|bool")  # torch's own names
_LAYOUT = "layout:"
_CONFLICT = ("<<<<<<<", "=======", ">>>>>>>", "|||||||")


class TreeFileError(TargetError, ReadError):
    """A ``.tree`` file cannot be read or written; the message names file and line."""


def short_dtype(dtype: str) -> str:
    """``f32`` for ``float32``, ``f8_e4m3fn`` for ``float8_e4m3fn``; a dtype without a short name as it is."""
    return _SHORT.get(dtype) or re.sub(r"^float(?=[48]_)", "f", dtype)


def long_dtype(short: str) -> str:
    """The inverse of :func:`short_dtype`."""
    return _LONG.get(short) or re.sub(r"^f(?=[48]_)", "float", short)


def spec_text(spec: TensorSpec) -> str:
    """``f32[64,3,7,7]``."""
    return f"{short_dtype(spec.dtype)}[{','.join(map(str, spec.shape))}]"


def write_tree(tree: ParamTree) -> str:
    """The text of a ``.tree`` file. ``read_tree`` gives back the same keys, specs, kinds and ties.

    >>> print(write_tree(ParamTree({"fc.bias": TensorSpec((10,)), "fc.weight": TensorSpec((10,2))})), end="")
    # ckptdoctor tree 1
    fc.bias                                           f32[10]
    fc.weight                                         f32[10,2]
    """
    owners = _tie_owners(tree)
    groups: dict[str, list[str]] = {}
    lines: list[tuple[str, str]] = []  # (first key, line)
    for key, spec in tree.specs.items():
        words = _words(spec, spec.kind)
        if key in owners:
            lines.append((key, _line(_written(key), f"{words} = {_written(owners[key])}")))
        else:
            groups.setdefault(words, []).append(key)
    for key, spec in tree.transient.items():
        groups.setdefault(_words(spec, "transient"), []).append(key)
    for words, keys in groups.items():
        lines += [(group.keys[0], _line(_word(group.text), words)) for group in fold(keys)]
    for key, description in tree.extra.items():
        lines.append((key, _line(_written(key), f"extra {json.dumps(description)}")))
    lines.sort(key=lambda pair: (natural_key(pair[0]), pair[0], pair[1]))
    return "".join(f"{line}\n" for line in (HEADER, *(line for _, line in lines)))


def read_tree(text: str, name: str) -> ParamTree:
    """Parse the text of a ``.tree`` file; ``name`` is the file's name for messages.

    Raises :class:`TreeFileError`, which is a ``TargetError`` and a ``ReadError``.
    """
    return _read(text, name).tree()


def tree_lines(text: str, name: str) -> dict[str, int]:
    """On which line of a ``.tree`` file each key stands. Raises :class:`TreeFileError`."""
    return _read(text, name).seen


def _read(text: str, name: str) -> _Reader:
    reader = _Reader(name)
    lines = text.removeprefix("\ufeff").split("\n")
    if not text.strip():
        raise reader.fail(1, f"the file is empty; a tree begins with `{HEADER}`")
    for number, line in enumerate(lines, 1):
        reader.line(number, line.rstrip("\r"))
    return reader


def _tie_owners(tree: ParamTree) -> dict[str, str]:
    """{key: the naturally first key of its tie}, without that first key."""
    owners = {}
    for group in tree.ties:
        first, *others = sorted(group, key=lambda k: (natural_key(k), k))
        owners.update(dict.fromkeys(others, first))
    return owners


def _words(spec: TensorSpec, kind: str) -> str:
    if not _DTYPE.fullmatch(spec.dtype):
        raise TreeFileError(f"`{printable(spec.dtype)}` is no dtype that a .tree file can hold")
    layout = "" if spec.layout == "strided" else f" {_LAYOUT}{spec.layout}"
    return spec_text(spec) + (f"  {kind}" if kind else "") + layout


def _line(pattern: str, words: str) -> str:
    return f"{pattern:{COLUMN}}  {words}"


def _written(key: str) -> str:
    return _word(escape(key))


def _word(pattern: str) -> str:
    """A pattern as one word that starts neither a comment nor a conflict marker."""
    if not pattern:
        return '""'
    if pattern[0] in '"#<=>|':
        pattern = f"\\x{ord(pattern[0]):02x}{pattern[1:]}"
    return pattern.replace(" ", "\\x20")


@dataclass
class _Reader:
    """Collects the lines of one file."""

    name: str
    specs: dict[str, TensorSpec] = field(default_factory=dict)
    transient: dict[str, TensorSpec] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    ties: list[tuple[int, str, str]] = field(default_factory=list)

    def fail(self, number: int, what: str) -> TreeFileError:
        return TreeFileError(f"{printable(self.name)}:{number}: {what}")

    def line(self, number: int, line: str) -> None:
        if line.startswith(_CONFLICT):
            raise self.fail(
                number, "an unresolved merge conflict; keep the lines of both sides that still hold"
            )
        if line.startswith("#"):
            self._header(number, line)
            return
        pattern, _, rest = line.strip().partition(" ")
        if not pattern:
            return
        keys = self._keys(number, pattern)
        for key in keys:
            if key in self.seen:
                raise self.fail(number, f"`{printable(key)}` is already on line {self.seen[key]}")
            self.seen[key] = number
        self._entry(number, keys, rest.strip())

    def _header(self, number: int, line: str) -> None:
        if number == 1 and line.startswith("# ckptdoctor tree ") and line.rstrip() != HEADER:
            raise self.fail(
                1, f"a tree of another format: `{printable(line)}`; this version reads `{HEADER}`"
            )

    def _keys(self, number: int, pattern: str) -> list[str]:
        if pattern == '""':
            return [""]
        try:
            keys = unfold(pattern)
        except PatternError as error:
            raise self.fail(number, str(error)) from None
        if len(set(keys)) != len(keys):
            raise self.fail(number, f"`{printable(pattern)}` names a key twice")
        return keys

    def _entry(self, number: int, keys: list[str], rest: str) -> None:
        if rest.startswith("extra "):
            self.extra.update(dict.fromkeys(keys, self._string(number, rest.removeprefix("extra "))))
            return
        words = rest.split()
        found = _SPEC.fullmatch(words[0]) if words else None
        if not found:
            raise self.fail(number, f"expected dtype[shape] as in f32[64,3], found `{printable(rest)}`")
        dtype = long_dtype(found["dtype"])
        if not _DTYPE.fullmatch(dtype):
            raise self.fail(number, f"`{printable(found['dtype'])}` is no dtype")
        owner, marks = self._owner(number, words[1:])
        kind, layout = self._marks(number, marks)
        shape = tuple(map(int, found["shape"].split(","))) if found["shape"] else ()
        kept: Kind = "buffer" if kind == "transient" else kind  # type: ignore[assignment]  # `_marks` gives no others
        spec = TensorSpec(shape, dtype, kept, layout=layout)
        (self.transient if kind == "transient" else self.specs).update(dict.fromkeys(keys, spec))
        if owner is not None:
            self.ties += [(number, key, owner) for key in keys]

    def _string(self, number: int, text: str) -> str:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, str):
            raise self.fail(number, f'expected `extra "words"`, found `{printable(text)}`')
        return value

    def _owner(self, number: int, words: list[str]) -> tuple[str | None, list[str]]:
        if "=" not in words:
            return None, words
        at = words.index("=")
        named = words[at + 1 :]
        owners = self._keys(number, named[0]) if len(named) == 1 else []
        if len(owners) != 1:
            raise self.fail(number, "expected one key after `=`, the tensor that this one is tied to")
        return owners[0], words[:at]

    def _marks(self, number: int, words: Iterable[str]) -> tuple[str, str]:
        kind, layout = "", "strided"
        for word in words:
            if word in ("param", "buffer", "transient") and not kind:
                kind = word
            elif word.startswith(_LAYOUT):
                layout = word.removeprefix(_LAYOUT)
            else:
                raise self.fail(number, f"`{printable(word)}` is not param, buffer or transient")
        return kind, layout

    def tree(self) -> ParamTree:
        specs = dict(self.specs)
        for key, storage in self._storages():
            old = specs[key]
            specs[key] = TensorSpec(old.shape, old.dtype, old.kind, storage=storage, layout=old.layout)
        return ParamTree(specs, ordered=False, extra=self.extra, transient=self.transient)

    def _storages(self) -> Iterator[tuple[str, str]]:
        followers = {key for _, key, _ in self.ties}
        for number, key, owner in self.ties:
            if owner in followers or owner not in self.specs or key not in self.specs:
                raise self.fail(
                    number, f"`{printable(owner)}` is no tensor of its own in this file to be tied to"
                )
            one, other = self.specs[key], self.specs[owner]
            if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
                raise self.fail(number, f"tied to `{printable(owner)}`, which is {spec_text(other)}")
            yield key, f"tie {owner}"
            yield owner, f"tie {owner}"
