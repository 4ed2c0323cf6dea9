"""One side of an alignment by paths: what is open, what modules hold, how lists are filled."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from math import prod

from ckptdoctor.align.compose import PACKS
from ckptdoctor.align.roles import kind_of, values_of
from ckptdoctor.align.units import Shape, Unit
from ckptdoctor.trees import ParamTree

Path = tuple[str, ...]
COUNTER = "num_batches_tracked"


def path_of(name: str) -> Path:
    """The segments of a name, which some files part by slashes."""
    return tuple((name if "." in name else name.replace("/", ".")).split("."))


Profile = tuple[object, ...]


class Open:
    """Paths that are open, by what they are and what stands above them, so that none is looked for."""

    def __init__(self, profile: Callable[[Path], Profile] | None = None) -> None:
        self._profile = profile
        self._paths: set[Path] = set()
        self._below: dict[Path, dict[Profile, dict[Path, None]]] = {}

    def add(self, path: Path) -> None:
        """One more."""
        if path in self._paths:
            return
        self._paths.add(path)
        kind = self._profile(path) if self._profile is not None else ()
        for depth in range(len(path) + 1):
            self._below.setdefault(path[:depth], {}).setdefault(kind, {})[path] = None

    def __contains__(self, path: Path) -> bool:
        return path in self._paths

    def __bool__(self) -> bool:
        return bool(self._paths)

    def under(self, place: Path) -> bool:
        """Whether any is below the place, or at it."""
        return place in self._below

    def kinds(self, place: Path, own: Path = ()) -> Iterator[Path]:
        """One of each kind below the place, other than ``own``."""
        for found in self._below.get(place, {}).values():
            other = next((x for x in islice(found, 2) if x != own), None)
            if other is not None:
                yield other


class Part:
    """One side: what is open of it, what its modules are, and how its lists are filled."""

    def __init__(self, names: Mapping[str, str], tree: ParamTree, units: Iterable[Unit]) -> None:
        self._names = names
        self._tree = tree
        self._units = units
        self.open = Open(self._profile)
        self.hidden = Open()  # names of tied tensors that the checkpoint does not have
        self._scopes: dict[Path, Path] = {}
        self._steps: dict[Path, tuple[dict[int, int], list[int]]] = {}

    @cached_property
    def shapes(self) -> dict[Path, Shape]:
        """Of all names."""
        return {path_of(n): self._tree[k].shape for n, k in self._names.items()}

    @cached_property
    def units(self) -> dict[Path, tuple[Unit, str]]:
        """The unit of each name, and what the tensor is of it."""
        units = self._units
        return {path_of(n): (u, role) for u in units for role, leaf in u.leaves.items() for n in leaf.keys}

    @cached_property
    def lists(self) -> dict[Path, dict[int, int]]:
        """Each list's numbers with the count of values below."""
        return _lists(self.shapes)

    @cached_property
    def starts(self) -> dict[Path, int]:
        """Each list's least number."""
        found: dict[Path, int] = {}
        for path in map(path_of, self._names):
            for i, segment in enumerate(path):
                if segment.isdecimal():
                    number, place = int(segment), path[:i]
                    if number < found.get(place, number + 1):
                        found[place] = number
        return found

    @cached_property
    def _sizes(self) -> Counter[Path]:
        return Counter(p[:depth] for p in self.shapes for depth in range(1, len(p) + 1))

    def _profile(self, path: Path) -> Profile:
        """All that :func:`_alike` and :meth:`apart` ask of a path."""
        shape, (unit, role) = self.shapes[path], self.units.get(path, (None, ""))
        if unit is None:
            return (shape,)
        return shape, unit.bare, role, kind_of(unit), frozenset(values_of(unit).items())

    def apart(self, mine: Path, other: Part, theirs: Path) -> bool:
        """Whether two tensors cannot be one, by what their modules are."""
        (u, role), (v, other_role) = self.units.get(mine, (None, "")), other.units.get(theirs, (None, ""))
        if u is None or v is None:
            return False
        if u.bare != v.bare or (role != other_role and not u.bare):
            return True
        kinds = {kind_of(u), kind_of(v)} - {""}
        values_u, values_v = values_of(u), values_of(v)
        both = [(x, values_v[g]) for g, x in values_u.items() if g in values_v]
        return len(kinds) > 1 or any(x != y and not {x, y} & PACKS.keys() for x, y in both)

    def closed(self, place: Path) -> bool:
        """Whether nothing below is open."""
        return not self.open.under(place)

    def whole(self, place: Path) -> bool:
        """Whether every name below has a tensor of its own that is not open."""
        return self.closed(place) and not self.hidden.under(place)

    def scope(self, path: Path) -> Path:
        """The smallest module around that holds another module too; () when that is the whole."""
        module = path[:-1]
        if module not in self._scopes:
            own = self._sizes[module]
            above = (module[:depth] for depth in range(len(module) - 1, 0, -1))
            self._scopes[module] = next((m for m in above if self._sizes[m] > own), ())
        return self._scopes[module]

    def steps(self, place: Path) -> tuple[dict[int, int], list[int]]:
        """Of a list: which number is the how many-th, and what each of them holds, in order."""
        if place not in self._steps:
            held = self.lists[place]
            ordered = sorted(held)
            self._steps[place] = {n: i for i, n in enumerate(ordered)}, [held[n] for n in ordered]
        return self._steps[place]


def _lists(shapes: Mapping[Path, Shape]) -> dict[Path, dict[int, int]]:
    found: dict[Path, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for path, shape in shapes.items():
        for i, segment in enumerate(path):
            if segment.isdecimal():
                found[path[:i]][int(segment)] += 0 if path[-1] == COUNTER else prod(shape)
    return found
