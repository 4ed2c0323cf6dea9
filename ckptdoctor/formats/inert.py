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
        if pairs:
            entries = pairs.items() if isinstance(pairs, dict) else pairs
            super().__init__((_simple(key), value) for key, value in entries)

    @classmethod
    def of_state(cls, state: Any) -> OrderedMapping:
        """An empty one with these attributes."""
        made = cls()
        made.state = state
        return made

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

    __slots__ = ("device", "dtype", "key", "nbytes", "numel")
    root: StorageRecord | None = None
    root_offset = 0

    def __init__(self, key: str, dtype: str, device: str, numel: int) -> None:
        self.key = key
        self.dtype = dtype = dtype or "uint8"
        self.device = device
        self.numel = numel
        self.nbytes = numel * DTYPE_SIZES[dtype]


class StorageView(StorageRecord):
    """A legacy view record: part of another storage, from one of its elements on."""

    __slots__ = ("root", "root_offset")

    def __init__(self, key: str, root: StorageRecord, offset: int, numel: int) -> None:
        super().__init__(key, root.dtype, root.device, numel)
        self.root = root
        self.root_offset = offset


def _more(name: str, default: Any = None) -> Any:
    """An attribute that few records have."""

    def read(record: TensorRecord) -> Any:
        return default if record.more is None else record.more.get(name, default)

    def write(record: TensorRecord, value: Any) -> None:
        record.more = {**(record.more or {}), name: value}

    return property(read, write)


_blank: Any = object.__new__


class TensorRecord:
    """One tensor as the file rebuilds it. Not checked yet: any field may hold anything.

    The class itself is what ``torch._utils._rebuild_tensor_v2`` becomes, with its arguments: it is called for
    nearly every tensor of every file. It is complete once it was made (NEWOBJ calls ``__new__`` alone).
    """

    __slots__ = ("more", "offset", "size", "storage", "stride")
    storage: Any
    offset: Any
    size: Any
    stride: Any
    more: dict[str, Any] | None

    def __new__(
        cls, storage: Any, offset: Any, size: Any, stride: Any, grad: Any = None, hooks: Any = None,
        bits: Any = None,
    ) -> TensorRecord:  # fmt: skip
        """A plain view, or one with lazy ``bits``."""
        self: TensorRecord = _blank(cls)
        self.storage = storage
        self.offset = offset
        self.size = size
        self.stride = stride
        self.more = _lazy_bits(bits) if bits else None
        return self

    dtype = _more("dtype")  # None: that of the storage
    param = _more("param", False)
    layout = _more("layout", "strided")
    parts = _more("parts")  # role -> TensorRecord, for sparse and the like
    values = _more("values")

    def __setstate__(self, state: Any) -> None:
        """Python attributes of a tensor (old Variables, subclasses) do not matter here."""

    def as_parameter(self) -> TensorRecord:
        """The same tensor as an nn.Parameter."""
        other = TensorRecord(self.storage, self.offset, self.size, self.stride)
        other.more = {**(self.more or {}), "param": True}
        return other


def _lazy_bits(bits: Any) -> dict[str, Any] | None:
    """Lazy conjugation and negation: the values differ from the stored ones."""
    if isinstance(bits, dict) and (bits.get("conj") or bits.get("neg")):
        return {"layout": "lazy", "values": {"conj": bool(bits.get("conj")), "neg": bool(bits.get("neg"))}}
    return None


class TensorRows:
    """A mapping of texts to plain tensors, by columns. ``tensors`` are the different ones, and ``kinds`` says
    which of them each is like in all but its storage, whose key is in ``storages``. ``state`` is that of an
    :class:`OrderedMapping`.
    """

    __slots__ = ("keys", "kinds", "state", "storages", "tensors")

    def __init__(self, state: Any) -> None:
        self.keys: list[str] = []
        self.storages: list[str] = []
        self.kinds: list[int] = []
        self.tensors: list[TensorRecord] = []
        self.state = state

    def __len__(self) -> int:
        return len(self.keys)

    def record(self, i: int) -> TensorRecord:
        """One of them."""
        kind = self.tensors[self.kinds[i]]
        of = kind.storage
        storage = StorageRecord(self.storages[i], of.dtype, of.device, of.numel)
        storage.nbytes = of.nbytes
        return TensorRecord(storage, kind.offset, kind.size, kind.stride)

    def records(self) -> OrderedMapping:
        """All one by one."""
        made = OrderedMapping.of_state(self.state)
        made.update((key, self.record(i)) for i, key in enumerate(self.keys))
        return made
