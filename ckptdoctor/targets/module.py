"""nn.Module -> ParamTree: the keys of its state dict with specs, without reading a value."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import TargetError
from ckptdoctor.facts import Fact, agreed, facts_of
from ckptdoctor.targets._text import describe, listing, printable
from ckptdoctor.trees import Kind, ParamTree, TensorSpec

if TYPE_CHECKING:
    import torch

Visited = Sequence[tuple[str, "torch.nn.Module"]]  # paths and modules

MAX_DEPTH = 2000  # of nested modules; deeper means a module that contains itself

# Segments that torch's own hooks remove from the keys of a state dict, but not from module paths.
_HIDDEN_SEGMENTS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def snapshot(model: torch.nn.Module) -> ParamTree:
    """The tree of a live model: keys exactly as ``model.state_dict()`` gives them, in its order.

    Works on any device, meta included, and reads no values. Tensors that share memory carry the same
    ``storage`` id. ``modules`` names the class at every module path, parameterless modules included.

    Raises ``TargetError`` for what is no ``nn.Module``, for a state dict that cannot be made, and for
    lazy modules whose shapes are not known yet.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TargetError(
            f"a model is an instance of torch.nn.Module, this is {describe(model)}"
            + ("; call the class to make one" if isinstance(model, type) else "")
        )
    with _no_gc():  # 100,000 small objects that stay: collecting in between costs half of the time
        return _snapshot(model)


def _snapshot(model: torch.nn.Module) -> ParamTree:
    import torch

    state = _state_dict(model)  # keeps every tensor alive, so that identities stay unique below
    visited = list(walk_modules(model))
    modules, kinds, transient = _walk(visited)
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    _refuse_lazy(model, tensors)
    read = _SpecReader()
    # By identity first: hooks may rename keys. By key for state dicts whose tensors were detached.
    specs = {k: read(t, kinds.get(id(t)) or kinds.get(k, "")) for k, t in tensors.items()}
    return ParamTree(
        specs=specs,
        ordered=True,
        modules=_visible(modules, specs),
        versions=_versions(state),
        extra={str(k): describe(v) for k, v in state.items() if not isinstance(v, torch.Tensor)},
        transient={k: read(t, "buffer") for k, t in transient.items() if k not in state},
        renamed=_renamed(visited),
        facts=_facts(visited),
    )


def _facts(visited: Visited) -> tuple[Fact, ...]:
    """Numbers that the model, its ``config`` objects and its attention layers carry, where all agree.

    One layer alone proves nothing of the others (a pooling head has heads of its own), so what only layers
    say has to be said by two of them at least.
    """
    found: list[Fact] = []
    layers: list[Fact] = []
    configs: dict[int, Mapping[str, Any]] = {}
    for path, module in visited:
        own = vars(module)
        if not path:
            found += facts_of(own, "the model's attributes")
        elif "att" in class_name(module).lower():
            layers += facts_of(own, "the model's attributes")
        config = own.get("config")
        if config is None:
            continue
        entries = config if isinstance(config, Mapping) else getattr(config, "__dict__", None)
        if isinstance(entries, Mapping):
            # transformers keeps this one on the class.
            configs[id(config)] = {"model_type": getattr(config, "model_type", None), **entries}
    found += [f for entries in configs.values() for f in facts_of(entries, "the model's config")]
    names = Counter(f.name for f in layers)
    return agreed([*found, *(f for f in layers if names[f.name] > 1)])


def _renamed(visited: Visited) -> dict[str, str]:
    """What modules declare in ``ckptdoctor_renamed_from = {"new": "old"}``, relative to themselves."""
    found: dict[str, str] = {}
    for path, module in visited:
        declared = vars(type(module)).get("ckptdoctor_renamed_from") or vars(module).get(
            "ckptdoctor_renamed_from"
        )
        if declared is None:
            continue
        if not isinstance(declared, Mapping) or not all(
            isinstance(text, str) for row in declared.items() for text in row
        ):
            raise TargetError(
                f"{class_name(module)}.ckptdoctor_renamed_from must map new names to old ones, "
                f'{{"stages.{{i}}.**": "layer{{i+1}}.**"}}; it is {describe(declared)}'
            )
        dot = f"{path}." if path else ""
        found |= {dot + new: dot + old for new, old in declared.items()}
    return found


def class_lines(model: torch.nn.Module) -> dict[str, str]:
    """``{path: "file:line"}`` of the root's class and of the ``self.name = ...`` of its parts.

    Only for source outside of torch and of installed packages. What ``Target.lines`` holds.
    """
    from ckptdoctor.targets import _lines

    return _lines.class_lines(model)


def walk_modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every (path, module) in registration order; a shared module comes under each of its paths."""
    stack = [("", model, 0)]
    while stack:
        path, module, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise TargetError(f"the model contains itself: {printable(path[:60])}...")
        yield path, module
        if not module._modules:
            continue
        children = [
            (f"{path}.{name}" if path else name, m) for name, m in module._modules.items() if m is not None
        ]
        stack.extend((child_path, child, depth + 1) for child_path, child in reversed(children))


def class_name(module: torch.nn.Module) -> str:
    """The name of a module's class; for TorchScript the name of the class it was made from."""
    cls = type(module)
    return str(module.original_name) if hasattr(cls, "original_name") else cls.__name__


@contextmanager
def _no_gc() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _state_dict(model: torch.nn.Module) -> Mapping[Any, Any]:
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


def _walk(visited: Visited) -> tuple[dict[str, str], dict[int | str, Kind], dict[str, torch.Tensor]]:
    """Class names by path, kind by tensor identity and by key, and the non-persistent buffers."""
    modules: dict[str, str] = {}
    kinds: dict[int | str, Kind] = {}
    transient: dict[str, torch.Tensor] = {}
    for path, module in visited:
        modules[path] = class_name(module)
        if not module._parameters and not module._buffers:
            continue
        dot = path + "." if path else ""
        for name, tensor in module._parameters.items():
            if tensor is not None:
                kinds[id(tensor)] = kinds[dot + name] = "param"
        if not module._buffers:
            continue
        hidden = getattr(module, "_non_persistent_buffers_set", ())
        for name, buffer in module._buffers.items():
            if buffer is not None:
                kinds.setdefault(id(buffer), "buffer")
                kinds[dot + name] = "buffer"
                if name in hidden:
                    transient[dot + name] = buffer
    return modules, kinds, transient


def _refuse_lazy(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    from torch.nn.parameter import is_lazy

    lazy = [key for key, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise TargetError(
            f"{class_name(model)} has {len(lazy)} lazy tensors without a shape: {listing(lazy)}. "
            "Their shapes come from the first batch: run one through the model before "
            "(a factory function such as `def build(): m = Net(); m(example); return m` can do it)."
        )


def _versions(state: Mapping[Any, Any]) -> dict[str, int]:
    metadata = getattr(state, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return {}
    found = {
        str(path): entry.get("version") for path, entry in metadata.items() if isinstance(entry, Mapping)
    }
    return {path: version for path, version in found.items() if isinstance(version, int)}


def _visible(modules: dict[str, str], specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Module paths as the keys spell them: without segments that state-dict hooks remove."""
    hiding = [path for path in modules if not _HIDDEN_SEGMENTS.isdisjoint(path.split("."))]
    if not hiding or any(not _HIDDEN_SEGMENTS.isdisjoint(key.split(".")) for key in specs):
        return modules
    shown = {}
    for path, name in modules.items():  # a wrapper comes before what it wraps, so the inner class stays
        shown[".".join(s for s in path.split(".") if s not in _HIDDEN_SEGMENTS)] = name
    return shown


class _SpecReader:
    """Tensor -> TensorSpec; numbers the storages in order of appearance, so that the result is stable."""

    def __init__(self) -> None:
        self._storages: dict[int, str] = {}
        self._names: dict[object, str] = {}

    def __call__(self, tensor: torch.Tensor, kind: Kind) -> TensorSpec:
        layout = self._name(tensor.layout)
        strided = layout == "strided"
        storage, nbytes = self._storage(tensor)
        return TensorSpec(
            shape=tuple(tensor.shape),
            dtype=self._name(tensor.dtype),
            kind=kind,
            device=self._name(tensor.device),
            strides=None if not strided or tensor.is_contiguous() else tuple(tensor.stride()),
            storage=storage,
            offset=int(tensor.storage_offset()) if strided else 0,
            storage_bytes=nbytes,
            layout="quantized" if tensor.is_quantized else layout,
        )

    def _name(self, thing: object) -> str:
        name = self._names.get(thing)
        if name is None:
            name = self._names[thing] = str(thing).removeprefix("torch.")
        return name

    def _storage(self, tensor: torch.Tensor) -> tuple[str, int]:
        try:
            memory = tensor.untyped_storage()
            # The address of the storage object itself: unlike its data pointer it also tells meta and
            # empty tensors apart.
            identity, nbytes = memory._cdata, memory.nbytes()
        except (NotImplementedError, RuntimeError, AttributeError):  # sparse layouts, some subclasses
            identity, nbytes = id(tensor), 0
        known = self._storages.get(identity)
        if known is None:
            known = self._storages[identity] = str(len(self._storages))
        return known, nbytes
