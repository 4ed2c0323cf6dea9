"""nn.Module -> ParamTree: the keys of its state dict with specs, without reading a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckptdoctor.columns import tally
from ckptdoctor.errors import TargetError
from ckptdoctor.facts import Fact, agreed, facts_of
from ckptdoctor.formats import quiet_gc
from ckptdoctor.formats.lazy import LazySpecs, over
from ckptdoctor.targets._text import describe, listing
from ckptdoctor.targets.survey import (
    CONFIG,
    RENAMED,
    Columns,
    Look,
    Survey,
    class_name,
    plain_types,
    survey,
)
from ckptdoctor.trees import Kind, ParamTree, TensorSpec

if TYPE_CHECKING:
    import torch

# Segments that torch's own hooks remove from the keys of a state dict, but not from module paths.
_HIDDEN_SEGMENTS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def snapshot(model: torch.nn.Module) -> ParamTree:
    """The tree of a live model: keys exactly as ``model.state_dict()`` gives them, in its order.

    Works on any device, meta included, and reads no values. Tensors that share memory carry the same
    ``storage`` id. ``modules`` names the class at every module path, parameterless modules included.

    Raises ``TargetError`` for what is no ``nn.Module``, for a state dict that cannot be made, and for
    lazy modules whose shapes are not known yet.
    """
    with quiet_gc():  # 100,000 small objects that stay: collecting in between costs half of the time
        return tree_of(walk(model))


def walk(model: torch.nn.Module) -> Survey:
    """:func:`survey` of what has to be a model; raises as :func:`snapshot`."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TargetError(
            f"a model is an instance of torch.nn.Module, this is {describe(model)}"
            + ("; call the class to make one" if isinstance(model, type) else "")
        )
    return survey(model)


def tree_of(found: Survey) -> ParamTree:
    """The tree of a model that was walked just now; raises as :func:`snapshot`."""
    import torch

    _refuse_lazy(found)
    kinds, storages = _specs(found.columns, _kinds(found))
    count = len(found.tensors)  # those of the hidden ones stand behind
    names = _class_names(found)
    state = {} if found.plain else found.state
    return ParamTree(
        specs=LazySpecs(list(found.tensors), kinds[:count], storages[:count]),
        ordered=True,
        modules=_visible(names, found.tensors),
        versions=_versions(found),
        extra={str(k): describe(v) for k, v in state.items() if not isinstance(v, torch.Tensor)},
        transient=dict(zip(found.hidden, map(over, kinds[count:], storages[count:]), strict=True)),
        renamed=_renamed(found),
        facts=_facts(found, names),
    )


def _class_names(found: Survey) -> dict[str, str]:
    """By path."""
    known = {cls: cls.__name__ for cls in found.classes if not hasattr(cls, "original_name")}
    if len(known) < len(found.classes):
        return {path: class_name(module) for path, module in found.visited}
    return {path: known[type(module)] for path, module in found.visited}


def _facts(walked: Survey, names: Mapping[str, str]) -> tuple[Fact, ...]:
    """Numbers that the model, its ``config`` objects and its attention layers carry, where all agree.

    One layer alone proves nothing of the others (a pooling head has heads of its own), so what only layers
    say has to be said by two of them at least.
    """
    found = [*facts_of(vars(walked.model), "the model's attributes")]
    layers: list[Fact] = []
    attention = {name for name in set(names.values()) if "att" in name.lower()}
    for path, module in walked.visited if attention else ():
        if path and names[path] in attention:
            layers += facts_of(vars(module), "the model's attributes")
    configs: dict[int, Mapping[str, Any]] = {}
    for config in [vars(module)[CONFIG] for _, module in walked.declaring if CONFIG in vars(module)]:
        entries = config if isinstance(config, Mapping) else getattr(config, "__dict__", None)
        if isinstance(entries, Mapping):
            # transformers keeps this one on the class.
            configs[id(config)] = {"model_type": getattr(config, "model_type", None), **entries}
    found += [f for entries in configs.values() for f in facts_of(entries, "the model's config")]
    said = tally(f.name for f in layers)
    return agreed([*found, *(f for f in layers if said[f.name] > 1)])


def _renamed(walked: Survey) -> dict[str, str]:
    """What modules declare in ``ckptdoctor_renamed_from = {"new": "old"}``, relative to themselves."""
    found: dict[str, str] = {}
    declared_by_class = any(RENAMED in vars(kind) for kind in walked.classes)
    for path, module in walked.visited if declared_by_class else walked.declaring:
        if RENAMED not in vars(module) and RENAMED not in vars(type(module)):
            continue
        declared = vars(type(module)).get(RENAMED) or vars(module).get(RENAMED)
        if declared is None:
            continue
        if not isinstance(declared, Mapping) or not all(
            isinstance(text, str) for row in declared.items() for text in row
        ):
            raise TargetError(
                f"{class_name(module)}.{RENAMED} must map new names to old ones, "
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


def _refuse_lazy(found: Survey) -> None:
    from torch.nn.parameter import is_lazy

    if plain_types().issuperset(map(type, found.tensors.values())):
        return
    lazy = [key for key, tensor in found.tensors.items() if is_lazy(tensor)]
    if lazy:
        raise TargetError(
            f"{class_name(found.model)} has {len(lazy)} lazy tensors without a shape: {listing(lazy)}. "
            "Their shapes come from the first batch: run one through the model before "
            "(a factory function such as `def build(): m = Net(); m(example); return m` can do it)."
        )


def _versions(found: Survey) -> dict[str, int]:
    if found.plain:
        return {path: v for path, m in found.visited if isinstance(v := m._version, int)}
    entries = {str(k): entry for k, entry in found.metadata.items() if isinstance(entry, Mapping)}
    versions = {path: entry.get("version") for path, entry in entries.items()}
    return {path: version for path, version in versions.items() if isinstance(version, int)}


def _kinds(found: Survey) -> list[Kind]:
    """Of all tensors, those that are not in the state dict last."""
    hidden: list[Kind] = ["buffer"] * len(found.hidden)
    shown: list[Kind] = ["param"] * len(found.tensors)
    if found.plain and not found.buffers:
        return shown + hidden
    parameters = {id(t) for k, t in found.tables.items() if k not in found.buffers}
    buffers = {id(t) for t in (*map(found.tables.__getitem__, found.buffers), *found.hidden.values())}

    def kind(key: str, tensor: torch.Tensor) -> Kind:
        # By identity first: hooks may rename keys. By key for state dicts whose tensors were detached.
        if id(tensor) in parameters:
            return "param"
        if id(tensor) in buffers or key in found.buffers or key in found.hidden:
            return "buffer"
        return "param" if key in found.tables else ""

    shown = [kind(key, tensor) for key, tensor in found.tensors.items()]
    return shown + hidden


def _specs(columns: Columns, words: Sequence[Kind]) -> tuple[list[TensorSpec], list[str]]:
    """One for all that look alike; and the storages, numbered in order of appearance."""
    numbers = {memory: str(i) for i, memory in enumerate(dict.fromkeys(columns.memories))}
    rows = list(zip(map(id, columns.looks), words, strict=True))
    few = dict(zip(rows, columns.looks, strict=True))
    made = {row: _spec(look, row[1]) for row, look in few.items()}
    return list(map(made.__getitem__, rows)), list(map(numbers.__getitem__, columns.memories))


def _spec(look: Look, word: Kind) -> TensorSpec:
    layout = str(look.layout).removeprefix("torch.")
    return TensorSpec(
        shape=tuple(look.shape),
        dtype=str(look.dtype).removeprefix("torch."),
        kind=word,
        device=str(look.device),
        strides=look.strides,
        offset=look.offset,
        storage_bytes=look.nbytes,
        layout="quantized" if look.quantized else layout,
    )


def _visible(modules: dict[str, str], keys: Iterable[str]) -> dict[str, str]:
    """Module paths as the keys spell them: without segments that state-dict hooks remove."""
    text = "\0".join(modules)
    if not any(segment in text for segment in _HIDDEN_SEGMENTS):
        return modules
    if any(not _HIDDEN_SEGMENTS.isdisjoint(key.split(".")) for key in keys):
        return modules
    shown = {}
    for path, name in modules.items():  # a wrapper comes before what it wraps, so the inner class stays
        shown[".".join(s for s in path.split(".") if s not in _HIDDEN_SEGMENTS)] = name
    return shown
