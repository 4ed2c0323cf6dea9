"""One walk over a live model: its modules, its state dict, and what its tensors are like.

Nearly all modules make their part of a state dict as ``nn.Module`` does, by naming what is in their tables.
Where all of a model's do, its state dict is what the walk finds; else the model is asked for it. Tensors are
looked at by columns, since a model has many of them and few kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import count
from operator import attrgetter, or_
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptdoctor.errors import TargetError
from ckptdoctor.targets._text import describe, printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Visited = Sequence[tuple[str, "nn.Module"]]  # paths and modules

MAX_DEPTH = 2000  # of nested modules; deeper means a module that contains itself

# Methods that a module may bring of its own, by its class or on itself.
_SAVING = ("state_dict", "_save_to_state_dict", "get_extra_state")
_LOADING = ("_load_from_state_dict", "load_state_dict")
_saving_of, _loading_of = attrgetter(*_SAVING, "__getattribute__"), attrgetter(*_LOADING)
_OWN = frozenset((*_SAVING, *_LOADING))
# Declarations that a module may carry, on itself or by its class.
RENAMED = "ckptdoctor_renamed_from"
CONFIG = "config"
_NOTED = frozenset((*_OWN, RENAMED, CONFIG))


class Look(NamedTuple):
    """All that one tensor shows without its values and the place of its memory."""

    type: type
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    layout: torch.layout
    strides: tuple[int, ...] | None  # None: contiguous, or not strided
    quantized: bool
    inference: bool
    flagged: bool  # conjugate or negative: its values are not those in memory
    offset: int
    nbytes: int  # of its storage


@dataclass(frozen=True)
class Columns:
    """Tensors by columns: what each looks like and the identity of its memory. ``few`` has each look once."""

    looks: Sequence[Look]
    memories: Sequence[int]
    few: Sequence[Look]

    @cached_property
    def shared(self) -> bool:
        """Whether two of them have one memory; a tensor that is there twice has."""
        return len(set(self.memories)) < len(self.memories)


@dataclass(frozen=True)
class Survey:
    """A live model as one walk found it; valid until something touches the model.

    ``visited`` has every path, so a shared module several times; ``classes`` are theirs, ``declaring`` those
    modules that carry a declaration (``RENAMED``, ``CONFIG``) themselves. ``state`` is
    ``model.state_dict()`` with the model's own tensors, ``tables`` what ``nn.Module`` puts into it,
    ``buffers`` those keys of it that are buffers, and ``hidden`` the buffers that are not in it. ``plain``
    says that no code of the model has a part in its state dict, which then is ``tables``; ``loads`` that
    none has in loading it, either.
    """

    model: nn.Module
    visited: Visited
    classes: Collection[type[nn.Module]]
    declaring: Visited
    state: Mapping[Any, Any]
    tables: Mapping[str, Tensor]
    hidden: Mapping[str, Tensor]
    buffers: frozenset[str]
    plain: bool
    loads: bool

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The entries of the state dict that are tensors; the others are extra state."""
        import torch

        if self.plain:
            return self.state
        return {str(k): v for k, v in self.state.items() if isinstance(v, torch.Tensor)}

    @cached_property
    def metadata(self) -> Mapping[Any, Any]:
        """The ``_metadata`` of the state dict: what each module says of itself, by path."""
        if self.plain:
            return {path: {"version": module._version} for path, module in self.visited}
        found = getattr(self.state, "_metadata", None)
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def modules(self) -> list[nn.Module]:
        """Each module once."""
        return list({id(module): module for _, module in self.visited}.values())

    @cached_property
    def slots(self) -> list[Tensor]:
        """``tensors``, then ``hidden``: where the model is ``plain``, all that it has."""
        return [*self.tensors.values(), *self.hidden.values()]

    @cached_property
    def columns(self) -> Columns:
        """Of ``slots``."""
        return columns_of(self.slots)


def survey(model: nn.Module) -> Survey:
    """Walk a model. Raises :class:`TargetError` where its state dict cannot be made."""
    try:
        walk = _Walk(model)
    except KeyError:  # a module was made without `nn.Module.__init__`, or keeps its tables elsewhere
        walk = _Walk(model, _with_tables)
        walk.saves = walk.loads = False
    plain = walk.saves and _torchs_own() and _as_torch(walk.classes, _saving_of)
    loads = plain and walk.loads and _as_torch(walk.classes, _loading_of)
    state: Mapping[Any, Any] = walk.tables
    hidden = walk.hidden
    if walk.endless or not plain:
        state = _state_dict(model)
        hidden = {k: t for k, t in hidden.items() if k not in state}
    if walk.endless:
        raise _endless(walk.endless)
    return Survey(
        model,
        walk.visited,
        walk.classes,
        walk.declaring,
        state,
        walk.tables,
        hidden,
        frozenset(walk.buffers),
        plain,
        loads,
    )


class _Walk:
    """Every module under each of its paths, in registration order, as :func:`walk_modules` gives them.

    ``tables`` and ``hidden`` are what ``nn.Module`` puts into a state dict and the buffers that it leaves
    out; ``saves`` and ``loads`` say that no module has a hook, or a method on itself, for that. All in one
    loop: a model has as many modules as tensors, and each costs more than a tensor.
    """

    def __init__(self, model: nn.Module, entries: Callable[[Any], Mapping[str, Any]] = vars) -> None:
        self.visited: list[tuple[str, nn.Module]] = []
        self.classes: set[type[nn.Module]] = set()
        self.declaring: list[tuple[str, nn.Module]] = []
        self.tables: dict[str, Tensor] = {}
        self.hidden: dict[str, Tensor] = {}
        self.buffers: list[str] = []
        self.saves = self.loads = True
        self.endless = ""
        visited, classes, tables = self.visited, self.classes, self.tables
        stack = [("", model, 0)]
        while stack:
            path, module, depth = stack.pop()
            own = entries(module)
            visited.append((path, module))
            classes.add(type(module))
            if (
                own["_state_dict_hooks"]
                or own["_state_dict_pre_hooks"]
                or own["_load_state_dict_pre_hooks"]
                or own["_load_state_dict_post_hooks"]
                or not own.keys().isdisjoint(_NOTED)
            ):
                self._note(path, module, own)
            dot = path + "." if path else ""
            parameters, children = own["_parameters"], own["_modules"]
            if parameters:
                for name, tensor in parameters.items():
                    if tensor is not None:
                        tables[dot + name] = tensor
            if own["_buffers"]:
                self._add_buffers(dot, module)
            if children:
                if depth == MAX_DEPTH:
                    self.endless = path
                    return
                below = [
                    (dot + name, child, depth + 1) for name, child in children.items() if child is not None
                ]
                stack += reversed(below)

    def _note(self, path: str, module: nn.Module, own: Mapping[str, Any]) -> None:
        """A module with hooks, or with methods or declarations of its own."""
        if RENAMED in own or CONFIG in own:
            self.declaring.append((path, module))
        method = not own.keys().isdisjoint(_OWN)
        if method or own["_state_dict_hooks"] or own["_state_dict_pre_hooks"]:
            self.saves = False
        if method or own["_load_state_dict_pre_hooks"] or own["_load_state_dict_post_hooks"]:
            self.loads = False

    def _add_buffers(self, dot: str, module: nn.Module) -> None:
        transient = getattr(module, "_non_persistent_buffers_set", ())
        for name, tensor in module._buffers.items():
            if tensor is not None and name in transient:
                self.hidden[dot + name] = tensor
            elif tensor is not None:
                self.tables[dot + name] = tensor
                self.buffers.append(dot + name)


def _with_tables(module: nn.Module) -> Mapping[str, Any]:
    """``vars(module)``, with its hooks and tables also where they are no entries of it, or are not at all."""
    hooks = (f"{name}_hooks" for name in ("_state_dict", "_state_dict_pre", "_load_state_dict_pre"))
    names = (*hooks, "_load_state_dict_post_hooks", "_parameters", "_buffers", "_modules")
    return {**vars(module), **{name: getattr(module, name, {}) for name in names}}


def _endless(path: str) -> TargetError:
    return TargetError(f"the model contains itself: {printable(path[:60])}...")


def walk_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every (path, module) in registration order; a shared module comes under each of its paths."""
    stack = [("", model, 0)]
    while stack:
        path, module, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise _endless(path)
        yield path, module
        if not module._modules:
            continue
        children = [
            (f"{path}.{name}" if path else name, m) for name, m in module._modules.items() if m is not None
        ]
        stack.extend((child_path, child, depth + 1) for child_path, child in reversed(children))


def slots_in(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a module's own parameters and buffers."""
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None:
                yield name, tensor


def class_name(module: nn.Module) -> str:
    """The name of a module's class; for TorchScript the name of the class it was made from."""
    cls = type(module)
    return str(module.original_name) if hasattr(cls, "original_name") else cls.__name__


def _torchs_own() -> bool:
    """Whether ``nn.Module`` itself is as torch wrote it."""
    from torch import nn

    codes = [getattr(getattr(nn.Module, name), "__code__", None) for name in _OWN]
    return {getattr(code, "co_filename", "") for code in codes} == {nn.modules.module.__file__}


def _as_torch(classes: Iterable[type[nn.Module]], methods: Callable[[type], Any]) -> bool:
    """Whether all of the classes have these methods from ``nn.Module``, and none is compiled."""
    import torch

    own, scripted = methods(torch.nn.Module), torch.jit.ScriptModule
    return all(methods(kind) == own and not issubclass(kind, scripted) for kind in classes)


def _state_dict(model: nn.Module) -> Mapping[Any, Any]:
    try:
        try:
            state: Any = model.state_dict(keep_vars=True)
        except TypeError:  # an overridden state_dict() that takes no arguments
            state = model.state_dict()
    except RecursionError:
        raise TargetError("state_dict() never ends: a module contains itself or is nested too deep") from None
    except Exception as error:
        raise TargetError(
            f"{class_name(model)}.state_dict() raises {type(error).__name__}: {printable(str(error))}"
        ) from error
    if not isinstance(state, Mapping):
        raise TargetError(f"{class_name(model)}.state_dict() returns {describe(state)}, not a mapping")
    return state


def columns_of(tensors: Sequence[Tensor]) -> Columns:
    """What the tensors are like, without a look at their values."""
    rows = _plain_rows(tensors) if plain_types().issuperset(map(type, tensors)) else None
    found, memories = rows or zip(*map(_row, tensors), strict=True)
    known: dict[tuple[Any, ...], int] = {}
    first = list(map(known.setdefault, found, count()))  # the place of the first one that looks like it
    looks = {at: Look(*row) for row, at in known.items()}
    return Columns(list(map(looks.__getitem__, first)), memories, list(looks.values()))


Rows = tuple[Sequence[tuple[Any, ...]], Sequence[int]]  # fields of looks, and identities of memory


def _plain_rows(tensors: Sequence[Tensor]) -> Rows | None:
    """What ``_row`` says of each; None where one has no memory of the usual sort."""
    import torch

    tensor = torch.Tensor
    try:
        storages = [t.untyped_storage() for t in tensors]
        whole = map(tensor.is_contiguous, tensors)
        rows = zip(
            map(type, tensors),
            *(map(attrgetter(name), tensors) for name in ("shape", "dtype", "device", "layout")),
            [None if c else t.stride() for c, t in zip(whole, tensors, strict=True)],
            map(attrgetter("is_quantized"), tensors),
            map(tensor.is_inference, tensors),
            map(or_, map(tensor.is_conj, tensors), map(tensor.is_neg, tensors)),
            map(tensor.storage_offset, tensors),
            map(torch.UntypedStorage.nbytes, storages),
            strict=True,
        )
        return list(rows), [s._cdata for s in storages]
    except (NotImplementedError, RuntimeError, AttributeError):
        return None


def _row(tensor: Tensor) -> tuple[tuple[Any, ...], int]:
    """The fields of a tensor's look, and the identity of its memory."""
    import torch

    strided = tensor.layout == torch.strided
    try:
        memory = tensor.untyped_storage()
        # The address of the storage object itself: unlike its data pointer it also tells meta and
        # empty tensors apart.
        identity, nbytes = memory._cdata, memory.nbytes()
    except (NotImplementedError, RuntimeError, AttributeError):  # sparse layouts, some subclasses
        identity, nbytes = id(tensor), 0
    fields = (
        type(tensor),
        tensor.shape,
        tensor.dtype,
        tensor.device,
        tensor.layout,
        None if not strided or tensor.is_contiguous() else tuple(tensor.stride()),
        tensor.is_quantized,
        tensor.is_inference(),
        strided and (tensor.is_conj() or tensor.is_neg()),
        int(tensor.storage_offset()) if strided else 0,
        nbytes,
    )
    return fields, identity


@cache
def plain_types() -> frozenset[type]:
    """Classes of tensors that are nothing but memory."""
    import torch
    from torch import nn

    return frozenset((torch.Tensor, nn.Parameter, getattr(nn, "Buffer", nn.Parameter)))
