"""The fewest "everything below A goes below B" rules that reproduce a renaming exactly.

This is routing-table aggregation (Draves et al., "Constructing optimal IP routing tables", INFOCOM 1999)
on a tree of path segments: a key follows the rule of its nearest ancestor. Bottom-up, each node learns
which new heads explain most of its children; top-down, a rule is written only where what is inherited
explains at least two children fewer than the best.

Paths are written with a dot before each segment, so that the root is ``""``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_TAILS = ("", ".*", ".**")


@dataclass(slots=True)
class Head:
    """Keys below ``old`` go below ``new``; ``tail`` is nothing, one segment, or any number; None: no key."""

    old: str
    new: str
    tail: str | None = None

    def take(self, rest: int) -> None:
        """One more key, so many segments deeper (0: the key itself)."""
        tail = _TAILS[min(rest, 2)]
        self.tail = tail if self.tail in (None, tail) else _TAILS[2]


class _Tree:
    """Per node: how many children each new head explains."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self.ends = {"." + name: "." + target for name, target in pairs.items()}
        self.children: dict[str, list[str]] = {}
        self.votes: dict[str, dict[str, int]] = {}
        levels: dict[int, list[str]] = {}
        for path in self.ends:
            levels.setdefault(path.count("."), []).append(path)
        for depth in range(max(levels, default=0), 0, -1):
            # A node may be a key and have keys below; dict.fromkeys joins the two.
            for node in dict.fromkeys(levels.get(depth, ())):
                self.lift(node, levels, depth)

    def lift(self, node: str, levels: dict[int, list[str]], depth: int) -> None:
        at = node.rfind(".")
        parent, segment = node[:at], node[at:]
        siblings = self.children.get(parent)
        if siblings is None:
            self.children[parent] = [node]
            self.votes[parent] = votes = {}
            levels.setdefault(depth - 1, []).append(parent)
        else:
            siblings.append(node)
            votes = self.votes[parent]
        for new in self.best(node):
            if new.endswith(segment):
                head = new[: -len(segment)]
                votes[head] = votes.get(head, 0) + 1

    def best(self, node: str) -> Iterable[str]:
        """The new heads that explain most of what is directly below this node."""
        votes = self.votes.get(node)
        if votes is None:
            return (self.ends[node],)
        if len(votes) == 1 and node not in self.ends:
            return votes
        votes = self.all_votes(node)
        most = max(votes.values(), default=0)
        return [head for head, n in votes.items() if n == most]

    def all_votes(self, node: str) -> dict[str, int]:
        votes = self.votes.get(node)
        end = self.ends.get(node)
        if votes is None:
            return {} if end is None else {end: 1}
        if end is not None:
            votes = {**votes, end: votes.get(end, 0) + 1}
        return votes


def heads(pairs: Mapping[str, str]) -> list[Head]:
    """Rules for ``{name: new name}``; the rule of the longest ``old`` head wins, without one names stay."""
    tree = _Tree(pairs)
    found: list[Head] = []
    stack: list[tuple[str, Head]] = [("", Head("", ""))]
    while stack:
        node, rule = stack.pop()
        children, end = tree.children.get(node, ()), tree.ends.get(node)
        if len(children) + (end is not None) > 1:  # one alone outvotes nothing
            votes = tree.all_votes(node)
            most = max(votes.values(), default=0)
            if most - votes.get(rule.new + node[len(rule.old) :], 0) >= 2:
                new = min((h for h, n in votes.items() if n == most), key=lambda h: (len(h), h))
                rule = Head(node, new)
                found.append(rule)
        if end is not None:
            if end != rule.new + node[len(rule.old) :]:
                found.append(Head(node, end, ""))
            else:
                rule.take(node.count(".") - rule.old.count("."))
        stack += [(child, rule) for child in reversed(children)]
    return [rule for rule in found if rule.tail is not None]
