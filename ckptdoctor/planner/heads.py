"""The fewest "everything below A goes below B" rules that reproduce a renaming exactly.

This is routing-table aggregation (Draves et al., "Constructing optimal IP routing tables", INFOCOM 1999)
on a tree of path segments: a key follows the rule of its nearest ancestor. Bottom-up, each node learns
which new heads explain most of its children; top-down, a rule is written only where what is inherited
explains at least two children fewer than the best.

Paths are written with a dot before each segment, so that the root is ``""``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Head:
    """Keys below ``old`` go below ``new``; ``rests``: how many segments deeper (0: the key itself)."""

    old: str
    new: str
    rests: set[int] = field(default_factory=set)

    @property
    def tail(self) -> str:
        """How the rule ends: nothing, one segment, or any number."""
        if self.rests == {0}:
            return ""
        return ".*" if self.rests == {1} else ".**"


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
        siblings = self.children.setdefault(parent, [])
        if not siblings:
            levels.setdefault(depth - 1, []).append(parent)
        siblings.append(node)
        votes = self.votes.setdefault(parent, {})
        for new in self.best(node) if node in self.votes else (self.ends[node],):
            if new.endswith(segment):
                head = new[: -len(segment)]
                votes[head] = votes.get(head, 0) + 1

    def best(self, node: str) -> list[str]:
        """The new heads that explain most of what is directly below this node."""
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
        inherited = rule.new + node[len(rule.old) :]
        votes = tree.all_votes(node) if node in tree.votes else {}  # a key alone outvotes nothing
        most = max(votes.values(), default=0)
        if most - votes.get(inherited, 0) >= 2:
            new = min((h for h, n in votes.items() if n == most), key=lambda h: (len(h), h))
            rule = Head(node, new)
            found.append(rule)
            inherited = new
        end = tree.ends.get(node)
        if end is not None:
            if end != inherited:
                found.append(Head(node, end, {0}))
            else:
                rule.rests.add(node.count(".") - rule.old.count("."))
        stack += [(child, rule) for child in reversed(tree.children.get(node, ()))]
    return [rule for rule in found if rule.rests]
