"""Units of matching: a module with its tensors travels as one, named by the module's path."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

from ckptdoctor.align.names import Name, Token, leaf_role, name_of, read_name
from ckptdoctor.trees import TensorSpec

Shape = tuple[int, ...]

# (pattern on the key, module group, role): reparametrised weights, old and new spelling alike.
_SPECIAL = [
    (re.compile(r"^(.*)\.parametrizations\.(\w+)\.original0$", re.S), "{1}_g"),
    (re.compile(r"^(.*)\.parametrizations\.(\w+)\.original1$", re.S), "{1}_v"),
    (re.compile(r"^(.*)\.parametrizations\.(\w+)\.original$", re.S), "{1}_orig"),
    (re.compile(r"^(.*)\.parametrizations\.(\w+)\.0\._u$", re.S), "{1}_u"),
    (re.compile(r"^(.*)\.parametrizations\.(\w+)\.0\._v$", re.S), "{1}_vec"),
    (re.compile(r"^(.*)\.((?:weight|bias)_(?:ih|hh)_l\d+(?:_reverse)?)$", re.S), "{1}"),
    (re.compile(r"^(.*)\.(weight_(?:g|v|u|orig|mask)|bias_(?:orig|mask))$", re.S), "{1}"),
]
_SUFFIXED = re.compile(r"^(.*[^.])[_.](weight|bias)$", re.S)
_KERNEL = re.compile(r"(^|[./])kernel(:0)?$")
_PAIRED = {"gamma": ("beta", "weight"), "beta": ("gamma", "bias"), "scale": ("bias", "weight")}
OPTIONAL_ROLES = frozenset({"num_batches_tracked"})
_HEADED = ("q", "k", "v")  # parts of an attention whose output has heads


class Leaf(NamedTuple):
    """One tensor of a unit: the keys it is made of (usually one) and its spec."""

    keys: tuple[str, ...]
    shape: Shape
    ops: tuple[str, ...] = ()  # how the keys combine into this leaf, e.g. concat(0)
    sizes: tuple[int, ...] = ()  # rows of each key, where keys are packed along dimension 0
    parts: tuple[tuple[str, ...], ...] = ()  # on the model's side: how each key comes of the whole
    fold: str = ""  # which reparametrisation the ops undo, see folds.FOLDS


@dataclass(eq=False, slots=True)
class Unit:
    """A module (or a bare parameter) with its tensors by role."""

    index: int
    path: str
    leaves: dict[str, Leaf]
    name: Name
    bare: bool = False
    cls: str = ""
    parts: tuple[Unit, ...] = ()

    role: str = ""  # what a single tensor is of its module, when it stands alone
    key: frozenset[tuple[str, Shape]] = frozenset()
    exact: frozenset[tuple[str, Shape]] = frozenset()
    kind: str | None = None  # what roles.kind_of and roles.values_of found, kept
    values: Mapping[str, Token] | None = None

    @property
    def whole(self) -> list[str]:
        """All canonical names that the unit is made of."""
        return [k for leaf in self.leaves.values() for k in leaf.keys]

    @property
    def size(self) -> int:
        """How many they are."""
        return sum([len(leaf.keys) for leaf in self.leaves.values()])

    def seal(self) -> Unit:
        """Fix what is compared once all leaves are there.

        ``key`` has to agree for two units to be candidates of each other; ``exact`` is the same
        without regard to transposition.
        """
        shapes = tuple([(r, leaf.shape) for r, leaf in self.leaves.items() if r not in OPTIONAL_ROLES])
        self.key, self.exact = _forms(shapes, is_stacked(self))
        self.kind = self.values = None
        return self


@lru_cache(maxsize=65536)
def _forms(
    shapes: tuple[tuple[str, Shape], ...], stacked: bool
) -> tuple[frozenset[tuple[str, Shape]], frozenset[tuple[str, Shape]]]:
    """``key`` and ``exact`` of a unit; equal blocks share them."""
    form = stacked_shape if stacked else canonical_shape
    exact = ((r, tuple(d for d in s if d != 1)) for r, s in shapes)
    return frozenset((r, form(s)) for r, s in shapes), frozenset(exact)


@lru_cache(maxsize=65536)
def canonical_shape(shape: Shape) -> Shape:
    """Shape up to dimensions of one and, for matrices, transposition: what layout changes keep."""
    squeezed = tuple(d for d in shape if d != 1)
    return tuple(sorted(squeezed)) if len(squeezed) == 2 else squeezed


def stacked_shape(shape: Shape) -> Shape:
    """The same for the matrices of all experts in one tensor, which may each be transposed."""
    return (*shape[:-2], *sorted(shape[-2:]))


def is_stacked(unit: Unit) -> bool:
    """Whether this is one tensor for all experts of a layer."""
    if not unit.bare or len(unit.leaves["weight"].shape) != 3:
        return False
    return "experts" in unit.name.form.words


def split_key(key: str, names: Container[str]) -> tuple[str, str, bool]:
    """Module path, role and whether the tensor is a bare parameter of its parent, one of all these names."""
    path, _, leaf = key.rpartition(".")
    if leaf.startswith(("weight_", "bias_")) or ".parametrizations." in key:
        for pattern, role in _SPECIAL:
            m = pattern.match(key)
            if m:
                return m.group(1), role.replace("{1}", m.group(2)), False
    role_name = leaf_role(leaf)
    if role_name is not None and path:
        return path, role_name, False
    if leaf in _PAIRED and path:
        partner, role_name = _PAIRED[leaf]
        alone = role_name == "weight" and "norm" in name_of(path).concepts[-1]  # a norm without a bias
        if (f"{path}.{partner}" in names or alone) and f"{path}.weight" not in names:
            return path, role_name, False
    m = _SUFFIXED.match(key)
    if m and not leaf.startswith(("weight", "bias")):
        return m.group(1), m.group(2), False
    return key, "weight", True


# Channels-last kernels (Keras, TF, JAX: `kernel`, spatial first, then in, then out) -> torch's order.
CHANNELS_LAST = {3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}


def leaf_of(key: str, shape: Shape, part: Token | None = None, role: str = "weight") -> Leaf:
    """The tensor as torch would store it: a convolution called `kernel` is kept channels-last.

    The kernel of an attention's ``part`` with an axis of its own for the heads is a matrix: (in, heads,
    size) for q, k and v, (heads, size, out) for the output (flax.linen.DenseGeneral).
    """
    kernel = "kernel" in key and _KERNEL.search(key)
    if role == "bias" and len(shape) == 2 and part in _HEADED:
        return Leaf((key,), (prod(shape),), (f"reshape({prod(shape)})",))
    if kernel and len(shape) == 3 and part in (*_HEADED, "o"):
        flat = (prod(shape[:2]), shape[2]) if part == "o" else (shape[0], prod(shape[1:]))
        return Leaf((key,), flat[::-1], (f"reshape({flat[0]},{flat[1]})", "transpose(0,1)"))
    order = CHANNELS_LAST.get(len(shape))
    if order is None or not kernel:
        return Leaf((key,), shape)
    return Leaf((key,), tuple(shape[i] for i in order), (f"permute({','.join(map(str, order))})",))


def dotted(keys: Iterable[str]) -> bool:
    """Whether keys use dots; some exports use slashes instead."""
    return any("." in k for k in keys) or not any("/" in k for k in keys)


def build_units(specs: Mapping[str, TensorSpec], modules: Mapping[str, str] | None = None) -> list[Unit]:
    """Group keys into units, in order."""
    texts: Iterable[str] = specs
    if not dotted(specs):
        texts = [k.replace("/", ".").removesuffix(":0") for k in specs]
    names = specs if texts is specs else frozenset(texts)
    units: dict[tuple[str, bool], Unit] = {}
    for text, (key, spec) in zip(texts, specs.items(), strict=True):
        path, role, bare = split_key(text, names)
        unit = units.get((path, bare))
        if unit is None or role in unit.leaves:
            if unit is not None:
                path, role, bare = text, "weight", True
            cls = modules.get(path, "") if modules else ""
            unit = units.setdefault((path, bare), Unit(len(units), path, {}, read_name(path), bare, cls))
        shape = spec.shape
        if "kernel" in key or (role == "bias" and len(shape) == 2):
            unit.leaves[role] = leaf_of(key, shape, _attention_part(unit.name), role)
        else:
            unit.leaves[role] = Leaf((key,), shape)
    return [unit.seal() for unit in _merged(list(units.values()))]


def _attention_part(name: Name) -> Token | None:
    """`q`, `k`, `v` or `o` as far as the name says so."""
    last = name.concepts[-1] if name.concepts else ()
    if last == ("out",) and len(name.concepts) > 1 and "attn" in name.concepts[-2]:
        return "o"
    part = name.form.values.get("part")
    return part if part in last else None


def _merged(units: list[Unit]) -> list[Unit]:
    """A weight and a bias that the file names apart (`query.weight`, `q_bias`) are one module's."""
    lone = [u for u in units if len(u.leaves) == 1 and not u.bare]
    if not any("bias" in u.leaves for u in lone):
        return units
    homes: dict[tuple[object, ...], list[Unit]] = defaultdict(list)
    for unit in lone:
        homes[unit.path.rpartition(".")[0], unit.name.steps].append(unit)
    gone: set[int] = set()
    for pair in homes.values():
        if len(pair) == 2 and {r for u in pair for r in u.leaves} == {"weight", "bias"}:
            first, second = sorted(pair, key=lambda u: "weight" not in u.leaves)
            first.leaves.update(second.leaves)
            gone.add(second.index)
    return [u for u in units if u.index not in gone]
