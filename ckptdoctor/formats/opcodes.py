"""A pickle as a tree of its opcodes, to write it again with a few of its objects replaced. Nothing is run.

Each value that the opcodes push is a node; its parts are the opcodes and nodes that make it, in order, so
that reading the parts in order is the stream again. Where an object is left out whose parts others refer
to (``GET``), the first of them gets the definition in its place: shared objects stay shared.

The opcodes are those of ``Lib/pickletools.py``. Frames are left out, memo entries are numbered anew.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptdoctor.formats.source import corrupt

PUSHES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "NONE", "NEWTRUE",
    "NEWFALSE", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
    "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_SET", "GLOBAL",
})  # fmt: skip
TO_MARK = frozenset({"LIST", "TUPLE", "DICT", "FROZENSET", "INST", "OBJ"})
INTO = {
    "APPEND": 1,
    "SETITEM": 2,
    "BUILD": 1,
    "APPENDS": -1,
    "SETITEMS": -1,
    "ADDITEMS": -1,
}  # -1: to the mark
MADE_OF = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "STACK_GLOBAL": 2,
    "BINPERSID": 1,
}  # fmt: skip
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


@dataclass(slots=True, eq=False)
class Node:
    """One value. ``op`` is the opcode that pushed it, ``value`` its argument (a text, a number)."""

    op: str
    parts: list[Any]
    value: Any = None
    puts: list[int] = field(default_factory=list)

    def children(self) -> list[Node]:
        """The values that it is made of, without the mark."""
        return [p for p in self.parts if isinstance(p, Node) and p.op != "MARK"]


@dataclass(frozen=True, slots=True)
class Put:
    """Remember the value on top of the stack."""

    number: int


@dataclass(frozen=True, slots=True)
class Get:
    """Push what was remembered."""

    number: int


class OpcodeTree:
    """The pickle in ``data``, which was read once by the unpickler; ``memo`` is what it remembers at the end.

    Raises :class:`~ckptdoctor.errors.CorruptCheckpointError` for a stream that cannot be written again.
    """

    def __init__(self, data: bytes, path: str) -> None:
        self.path = path
        self.memo: dict[int, Node] = {}
        self.outside: list[Node] = []  # persistent ids, in order
        self.head = b""
        self._stack: list[Node] = []
        self._defined: list[Node] = []  # by number of their Put
        self._numbers: dict[int, int] = {}  # memo index -> number of the Put that it now means
        self._read(data)
        if len(self._stack) != 1:
            raise self._odd("it leaves more than one object")
        self.root = self._stack[0]

    def _odd(self, what: str) -> Exception:
        return corrupt(self.path, f"its pickle cannot be written again ({what})", "save it anew with torch")

    def _read(self, data: bytes) -> None:
        before: tuple[Any, Any, int] | None = None
        for op, arg, at in pickletools.genops(data):
            if before is not None:
                self._one(before[0].name, before[1], data[before[2] : at])
            assert at is not None
            before = op, arg, at

    def _one(self, name: str, arg: Any, raw: bytes) -> None:
        stack = self._stack
        if name in PUSHES:
            stack.append(Node(name, [raw], arg))
        elif name in PUTS:
            self._put(int(arg))
        elif name == "MEMOIZE":
            self._put(len(self._numbers))
        elif name in GETS:
            number = self._numbers[int(arg)]
            stack.append(Node("GET", [Get(number)], self._defined[number]))
        elif name == "MARK":
            stack.append(Node("MARK", [raw]))
        elif name in MADE_OF:
            self._made(name, self._take(MADE_OF[name]), raw)
        elif name in TO_MARK:
            self._made(name, self._to_mark(), raw, arg)
        elif name in INTO:
            parts = self._take(INTO[name]) if INTO[name] > 0 else self._to_mark()
            stack[-1].parts += [*parts, raw]
        elif name in ("POP", "POP_MARK"):
            self._popped(name, raw)
        elif name == "PROTO":
            self.head = raw
        elif name != "FRAME":
            raise self._odd(f"the opcode {name}")

    def _made(self, name: str, parts: list[Node], raw: bytes, arg: Any = None) -> None:
        node = Node(name, [*parts, raw], arg)
        self._stack.append(node)
        if name == "BINPERSID":
            self.outside.append(node)

    def _popped(self, name: str, raw: bytes) -> None:
        """What was made and thrown away (recursive tuples are): it stays with what is below."""
        marked = name == "POP_MARK"
        parts = self._to_mark() if marked else self._take(1)
        if not self._stack:
            raise self._odd("it throws its first object away")
        self._stack[-1].parts += [*parts, raw]

    def _put(self, index: int) -> None:
        node, number = self._stack[-1], len(self._defined)
        self._defined.append(node)
        self._numbers[index] = number
        self.memo[index] = node
        node.puts.append(number)
        node.parts.append(Put(number))

    def _take(self, count: int) -> list[Node]:
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _to_mark(self) -> list[Node]:
        """Everything from the last mark on, with the mark."""
        at = len(self._stack) - 1
        while self._stack[at].op != "MARK":
            at -= 1
        taken = self._stack[at:]
        del self._stack[at:]
        return taken

    @property
    def numbers(self) -> int:
        """How many memo entries there are: those from here on are free."""
        return len(self._defined)

    def written(
        self, replaced: Mapping[Node, Callable[[], bytes]], seen: Callable[[Node], None] = lambda node: None
    ) -> bytes:
        """The stream again, with other opcodes for some nodes; ``seen`` is told each persistent id in it."""
        return self.head + b"".join(self._opcodes(replaced, seen)) + b"."

    def _opcodes(
        self, replaced: Mapping[Node, Callable[[], bytes]], seen: Callable[[Node], None]
    ) -> Iterator[bytes]:
        there: set[int] = set()  # numbers that are defined by now
        begun: set[int] = set()  # ids of nodes
        stack: list[Iterator[Any]] = [iter([self.root])]
        while stack:
            part = next(stack[-1], None)
            if part is None:
                stack.pop()
            elif isinstance(part, bytes):
                yield part
            elif isinstance(part, Put):
                there.add(part.number)
                yield put(part.number)
            elif isinstance(part, Get) and part.number in there:
                yield get(part.number)
            else:
                node = self._defined[part.number] if isinstance(part, Get) else part
                known = next((n for n in node.puts if n in there), None)
                if known is not None:
                    yield get(known)
                elif id(node) in begun:
                    raise self._odd("an object that contains itself is in what is replaced")
                elif node in replaced:
                    yield replaced[node]()
                    for number in node.puts:
                        there.add(number)
                        yield put(number)
                else:
                    begun.add(id(node))
                    if node.op == "BINPERSID":
                        seen(node)
                    stack.append(iter(node.parts))


def meant(node: Node) -> Node:
    """The node itself, or what it refers to."""
    while node.op == "GET":
        node = node.value
    return node


def constant(node: Node) -> Any:
    """The text or number that a node pushes; None for anything else."""
    return meant(node).value


def global_name(node: Node) -> str:
    """``"torch FloatStorage"``: module and name of a global, however the stream pushes it."""
    found = meant(node)
    if found.op == "STACK_GLOBAL":
        return " ".join(str(constant(child)) for child in found.children())
    return str(found.value)


def put(number: int) -> bytes:
    """Remember the top of the stack."""
    return b"q%c" % number if number < 256 else b"r" + struct.pack("<I", number)


def get(number: int) -> bytes:
    """Push what was remembered."""
    return b"h%c" % number if number < 256 else b"j" + struct.pack("<I", number)
