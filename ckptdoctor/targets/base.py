"""What a model on the command line becomes: a tree with a name and a place. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptdoctor.trees import ParamTree


@dataclass(frozen=True)
class Target:
    """One model, read without its values.

    ``label`` is what selects it again on the command line (``model.py:resnet``), ``place`` where it is
    defined (``model.py:41``), ``lines`` where parts of it are assigned, by module or tensor path.
    ``candidates`` are the other models of the same file that could have been meant, ``notes`` facts on
    how it was built that a reader may need. ``walked`` is a live model as it was found, for whoever loads
    into it at once; a diagnosis does not keep it.
    """

    tree: ParamTree
    label: str
    place: str = ""
    lines: Mapping[str, str] = field(default_factory=dict)
    candidates: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()
    kind: type | None = field(default=None, compare=False, repr=False)
    walked: Any = field(default=None, compare=False, repr=False)

    def place_of(self, key: str) -> str:
        """``file:line`` of the nearest part of ``key`` whose line is known, else ``place``.

        >>> Target(ParamTree({}), "m", "model.py:1", {"fc": "model.py:7"}).place_of("fc.weight")
        'model.py:7'
        """
        path = key
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path.rpartition(".")[0]
        return self.lines.get("", self.place)


Prefer = Callable[[Sequence[Target]], int | None]
"""Chooses among several candidates by index, or ``None`` when that would be a guess."""
