"""Finding every state dict in an unpickled file, however deep, and naming all the rest.

Containers are visited once, without recursion, in the order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from ckptdoctor.formats.harvest import is_module
from ckptdoctor.formats.inert import Inert, TensorRecord, TensorRows
from ckptdoctor.formats.source import corrupt
from ckptdoctor.formats.summaries import is_optimizer, optimizer_words, words

MOST_REST = 200  # entries of one container that are listed one by one
MOST_ALIASES = 8
DEEPEST = 1000
LONGEST_NAME = 200
ADVICE = "no checkpoint is; get it again from its source"
_PLAIN = re.compile(r"[\w\-]+", re.ASCII)

Children = list[tuple[str, Any]]


class Place:
    """One container of the file: where it is, what it is, what is below."""

    __slots__ = ("aliases", "depth", "envelope", "kind", "node", "parent", "path", "pure")

    def __init__(self, node: Any, path: str, parent: Place | None) -> None:
        self.node = node
        self.path = path
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent is not None else 0
        self.kind = ""  # "mapping", "list" or "module": a state dict; "optimizer"
        self.envelope = False  # a state dict is somewhere below
        self.pure = is_pure(node)
        self.aliases: list[str] = []

    def mark_envelopes(self) -> None:
        """Tell all containers around this one."""
        around = self.parent
        while around is not None and not around.envelope:
            around.envelope = True
            around = around.parent


def join(path: str, name: object) -> str:
    """``join("a", "b") == "a.b"``; a name with other characters is quoted: ``a['x.y']``."""
    if isinstance(name, str) and len(name) < LONGEST_NAME and _PLAIN.fullmatch(name):
        return f"{path}.{name}" if path else name
    if isinstance(name, int) and name.bit_length() <= 64:
        return f"{path}[{name}]"
    text = str(name) if isinstance(name, str | float | bool) else type(name).__name__
    return f"{path}[{text if len(text) < LONGEST_NAME else text[:LONGEST_NAME] + '...'!r}]"


def is_pure(node: Any) -> bool:
    """A mapping of texts to tensors and nothing else: there is nothing to look for in it."""
    if type(node) is TensorRows:
        return True
    tensors = isinstance(node, dict) and set(map(type, node.values())) == {TensorRecord}
    return tensors and set(map(type, node)) == {str}


CONTAINERS = (dict, list, tuple, set, frozenset, Inert, TensorRows)


def is_container(value: Any) -> bool:
    """Something that may hold tensors."""
    return isinstance(value, CONTAINERS)


def is_no_tensor(value: Any) -> bool:
    """Anything but a tensor."""
    return type(value) is not TensorRecord


def anything(value: Any) -> bool:
    """Everything."""
    return True


def children(node: Any, path: str, wanted: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """What is directly inside a container and is `wanted`, with its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            if wanted(value):
                yield join(path, key), value
    elif isinstance(node, Inert):
        yield from ((p, v) for p, v in _inside(node, path) if wanted(v))
    elif isinstance(node, list | tuple | set | frozenset):
        for i, value in enumerate(node):
            if wanted(value):
                yield f"{path}[{i}]", value


def _inside(node: Inert, path: str) -> Iterator[tuple[str, Any]]:
    attributes = node.attributes()
    for key, value in attributes.items():
        yield join(path, key), value
    for key, value in node.pairs:
        yield join(path, key), value
    for i, value in enumerate(node.items):
        yield f"{path}[{i}]", value
    for i, value in enumerate(node.args):
        yield f"{path}({i})", value
    if not attributes and is_container(node.state):
        yield f"{path}.state", node.state


class Walk:
    """The walk over one file. ``found`` are the places of its state dicts, in order."""

    def __init__(self, root: Any, file: str) -> None:
        self.root = root
        self.file = file
        self.places: dict[int, Place] = {}
        self.found: list[Place] = []
        self._maybe: list[Place] = []
        self._inner: list[Any] = []  # optimizers and modules: only their tensors are counted
        self._counted: set[int] = set()
        self.tensors = 0
        self._visit()
        if not self.found:
            for place in self._maybe:
                self._accept(place, "mapping")

    def _visit(self) -> None:
        stack: list[tuple[Any, str, Place | None]] = [(self.root, "", None)]
        while stack:
            node, path, parent = stack.pop()
            seen = self.places.get(id(node))
            if seen is not None:
                if len(seen.aliases) < MOST_ALIASES:
                    seen.aliases.append(path)
                if seen.envelope or seen.kind:
                    self._envelope(parent)
                continue
            place = self.places[id(node)] = Place(node, path, parent)
            if place.depth > DEEPEST:
                raise corrupt(self.file, f"it is nested more than {DEEPEST} levels deep", ADVICE)
            if self._classify(place) and not place.pure:
                inside = [(v, p, place) for p, v in children(node, path, is_container)]
                stack.extend(reversed(inside))
        self._count()

    def _envelope(self, place: Place | None) -> None:
        if place is not None and not place.envelope:
            place.envelope = True
            place.mark_envelopes()

    def _classify(self, place: Place) -> bool:
        """Give the place its kind; True if its children are to be visited too."""
        node = place.node
        self._inner.append(node)
        attributes = node if isinstance(node, dict) else node.attributes() if isinstance(node, Inert) else {}
        if is_optimizer(attributes):
            place.kind = "optimizer"
            return False
        if is_module(node):
            self._accept(place, "module")
            return False
        if place.pure:
            self._accept(place, "mapping")
        elif isinstance(node, dict):
            self._judge(place)
        elif isinstance(node, list | tuple) and _is_tensor_list(node):
            self._accept(place, "list")
        return True

    def _accept(self, place: Place, kind: str) -> None:
        place.kind = kind
        self.found.append(place)
        place.mark_envelopes()

    def _judge(self, place: Place) -> None:
        """A mapping is a state dict if at least half of its entries are tensors."""
        tensors = others = 0
        for key, value in place.node.items():
            if type(value) is TensorRecord and isinstance(key, str | int):
                tensors += 1
            elif not (isinstance(key, str) and is_extra(key)):
                others += 1
        if tensors and tensors >= others:
            self._accept(place, "mapping")
        elif tensors:
            self._maybe.append(place)

    def _count(self) -> None:
        """Count the tensors of every container once, those inside optimizers and modules too."""
        stack = self._inner
        while stack:
            node = stack.pop()
            if id(node) in self._counted:
                continue
            self._counted.add(id(node))
            if is_pure(node):
                self.tensors += len(node)
                continue
            if isinstance(node, dict):
                stack.extend(k for k in node if type(k) is not str and is_container(k))
            for value in _values(node):
                if type(value) is TensorRecord:
                    self.tensors += 1
                elif isinstance(value, CONTAINERS):
                    stack.append(value)

    def rest(self) -> dict[str, str]:
        """Path -> words for all that is in no state dict, at the level of the envelopes."""
        rest: dict[str, str] = {}
        for place in self.places.values():
            if place.kind == "optimizer":
                if not place.path:
                    rest["(the file)"] = _optimizer(place.node)
            elif place.pure:
                continue
            elif place.kind != "module" and (place.envelope or place.parent is None or place.kind):
                self._rest_of(place, rest)
        return rest

    def _rest_of(self, place: Place, rest: dict[str, str]) -> None:
        listed = 0
        mapping = place.node if place.kind == "mapping" else ()
        extras = {join(place.path, k) for k in mapping if isinstance(k, str) and is_extra(k)}
        for path, value in children(place.node, place.path, is_no_tensor if place.kind else anything):
            inner = self.places.get(id(value)) if is_container(value) else None
            listed_itself = inner is not None and (inner.envelope or inner.kind not in ("", "optimizer"))
            if listed_itself or path in extras:
                continue
            listed += 1
            if listed > MOST_REST:
                rest[f"{place.path}..."] = "more entries"
                return
            rest[path] = _optimizer(value) if inner is not None and inner.kind else words(value)


def _values(node: Any) -> Any:
    if isinstance(node, dict):
        return node.values()
    if isinstance(node, Inert):
        pairs = [v for pair in node.pairs for v in pair]
        state = [node.state] if node.state is not None else []
        return [*node.args, *node.items, *pairs, *state]
    return node if isinstance(node, CONTAINERS) else ()


def is_extra(key: str) -> bool:
    """``Module.get_extra_state`` lands under this name."""
    return key == "_extra_state" or key.endswith("._extra_state")


def _is_tensor_list(node: list[Any] | tuple[Any, ...]) -> bool:
    """Tensors and nothing else, and not the states of random generators (byte vectors, one per device)."""
    if not node or not all(isinstance(v, TensorRecord) for v in node):
        return False
    return not all(
        getattr(r.storage, "dtype", "") == "uint8" and isinstance(r.size, tuple) and len(r.size) == 1
        for r in node
    )


def _optimizer(node: Any) -> str:
    if isinstance(node, Inert):
        return f"{words(node).partition(' with ')[0]}, {optimizer_words(node.attributes())}"
    return optimizer_words(node)
