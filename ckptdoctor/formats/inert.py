"""What the names in a pickle become: inert objects that only record what was done to them.

Nothing that a file names is imported or called. A class or function turns into a subclass of
`Inert`; calling it, setting its state or filling it only writes down the arguments.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ckptdoctor.trees import DTYPE_SIZES


class Inert:
    """Stand-in for an object of a class that the file names."""

    __slots__ = ("args", "items", "pairs", "state")
    module: ClassVar[str] = ""
    name: ClassVar[str] = ""

    args: tuple[Any, ...]
    state: Any
    items: list[Any]
    pairs: list[tuple[Any, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Record the arguments, whatever they are."""
        self = object.__new__(cls)
        self.args = args + tuple(kwargs.items())
        self.state = None
        self.items = []
        self.pairs = []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(self.state, dict) and isinstance(state, dict):
            self.state = {**self.state, **state}
        else:
            self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))

    def append(self, item: Any) -> None:
        """APPEND records."""
        self.items.append(item)

    def extend(self, items: list[Any]) -> None:
        """APPENDS records."""
        self.items.extend(items)

    def add(self, item: Any) -> None:
        """ADDITEMS records."""
        self.items.append(item)

    @property
    def what(self) -> str:
        """The class as the file names it: ``"models.yolo.Model"``."""
        return f"{self.module}.{self.name}"

    def attributes(self) -> dict[Any, Any]:
        """What BUILD put into ``__dict__`` and slots, where it is a dict as usual."""
        state = self.state
        if (
            isinstance(state, tuple)
            and len(state) == 2
            and all(s is None or isinstance(s, dict) for s in state)
        ):
            return {**(state[0] or {}), **(state[1] or {})}
        return state if isinstance(state, dict) else {}


def stand_in(module: str, name: str) -> type[Inert]:
    """A new stand-in class for ``module.name``."""
    return type("Inert", (Inert,), {"__slots__": (), "module": module, "name": name})


def _simple(key: Any) -> Any:
    if isinstance(key, tuple | frozenset | set | list | dict):
        raise TypeError("a mapping with a container as key")
    return key


class OrderedMapping(dict[Any, Any]):
    """A `collections.OrderedDict` (or defaultdict, Counter) of the file; ``state`` holds its attributes."""

    __slots__ = ("state",)

    state: Any

    def __init__(self, pairs: Any = (), *_: Any) -> None:
        """From a list of pairs, as Python 2 wrote it. Keys are checked: hashing some never ends."""
        entries = pairs.items() if isinstance(pairs, dict) else pairs
        super().__init__((_simple(key), value) for key, value in entries)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def attribute(self, name: str) -> Any:
        """An attribute set on the mapping itself, such as ``_metadata``; None if there is none."""
        state = getattr(self, "state", None)
        if isinstance(state, tuple) and state:  # (dict, slots)
            state = state[0]
        return state.get(name) if isinstance(state, dict) else None


class DefaultMapping(OrderedMapping):
    """A `collections.defaultdict`: its first argument is a factory, which is not kept."""

    __slots__ = ()

    def __init__(self, factory: Any = None, *args: Any) -> None:
        super().__init__(*args)


class Closed:
    """Something of ours that a pickle can hold but not write to: BUILD on it is an error."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise TypeError("it sets the state of something that has none")


class DtypeName(Closed):
    """``torch.float32`` and the like."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class StorageType(Closed):
    """``torch.FloatStorage`` and the like; `dtype` is ``""`` for the untyped one."""

    __slots__ = ("dtype", "name")

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = dtype


class StorageRecord(Closed):
    """One storage as a persistent id names it; ``numel`` counts elements of ``dtype``."""

    __slots__ = ("device", "dtype", "key", "nbytes", "numel", "root", "root_offset")

    def __init__(self, key: str, dtype: str, device: str, numel: int) -> None:
        self.key = key
        self.dtype = dtype or "uint8"
        self.device = device
        self.numel = numel
        self.nbytes = numel * DTYPE_SIZES[self.dtype]
        self.root: StorageRecord | None = None  # a legacy view record: part of that storage,
        self.root_offset = 0  # from this element on


class TensorRecord:
    """One tensor as the file rebuilds it. Not checked yet: any field may hold anything."""

    __slots__ = ("dtype", "layout", "offset", "param", "parts", "size", "storage", "stride", "values")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> None:
        self.storage = storage
        self.offset = offset
        self.size = size
        self.stride = stride
        self.dtype = dtype  # None: that of the storage
        self.param = False
        self.layout = "strided"
        self.parts: dict[str, Any] | None = None  # role -> TensorRecord, for sparse and the like
        self.values: dict[str, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        """Python attributes of a tensor (old Variables, subclasses) do not matter here."""

    def as_parameter(self) -> TensorRecord:
        """The same tensor as an nn.Parameter."""
        other = TensorRecord(self.storage, self.offset, self.size, self.stride, self.dtype)
        other.layout, other.parts, other.values = self.layout, self.parts, self.values
        other.param = True
        return other
