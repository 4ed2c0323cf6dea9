"""A drawn state dict as a file, in the ways that training code saves one."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptdoctor.testing.history import Draft, History, Truth

# form -> file name
FORMS = {
    "zip": "a.pth",
    "legacy": "a.pt",
    "safetensors": "a.safetensors",
    "safetensors shards": "a.safetensors.index.json",
    "torch shards": "a.bin.index.json",
}
PLAIN = ("safetensors", "safetensors shards", "torch shards")  # no envelope, tensors only


def write(history: History, state: Mapping[str, Any], folder: Path) -> tuple[Path, Truth]:
    """Run a history over a model's state dict, save the result in ``folder``, and say what the truth is."""
    draft = history.run(state)
    path = folder / FORMS[history.form]
    if history.form in PLAIN:
        tensors, kept = _untied(draft.state)
        draft.truth = {t: tuple(kept.get(s, s) for s in ss) for t, ss in draft.truth.items()}
        _plain(history, tensors, path)
    else:
        _torch(history, draft, path, getattr(state, "_metadata", None))
    return path, _truth(draft, state, bool(history.ema))


def _truth(draft: Draft, state: Mapping[str, Any], ambiguous: bool) -> Truth:
    """A tied key is filled by whichever of its names the file still has."""
    sources, values = dict(draft.truth), dict(draft.values)
    groups: dict[object, list[str]] = {}
    for key, value in state.items():
        if hasattr(value, "data_ptr") and value.numel():
            groups.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), []).append(key)
    for group in groups.values():
        left = [k for k in group if k in sources]
        for key in group if left else ():
            sources.setdefault(key, sources[left[0]])
            values.setdefault(key, values[left[0]])
    return Truth(sources, values, ambiguous, frozenset(draft.near))


def _torch(history: History, draft: Draft, path: Path, metadata: Any) -> None:
    import torch

    content: Any = _module(draft.state) if history.module else OrderedDict(draft.state)
    if history.metadata and metadata is not None and not history.module:
        content._metadata = metadata
    for depth, name in enumerate(reversed(history.envelope)):
        content = {name: content, "epoch": 3}
        if history.ema and not depth:
            content[history.ema] = {k: _averaged(v) for k, v in draft.state.items()}
    with tagged(history.device):
        torch.save(
            content,
            path,
            pickle_protocol=history.protocol,
            _use_new_zipfile_serialization=history.form == "zip",
        )


def _module(state: Mapping[str, Any]) -> Any:
    """A module whose state dict has these tensors, whatever its parts are called."""
    from torch import Tensor, nn

    root = nn.Module()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            continue
        module, path = root, key.split(".")
        for name in path[:-1]:
            module = module._modules.setdefault(name, nn.Module())  # type: ignore[assignment]  # ours are never None
        module._buffers[path[-1]] = value.detach()
    return root


def _averaged(value: Any) -> Any:
    import torch

    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


@contextmanager
def tagged(device: str) -> Iterator[None]:
    """Storages are saved as if they were on ``device``."""
    import torch

    if not device:
        yield
        return
    before = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: device
    try:
        yield
    finally:
        torch.serialization.location_tag = before


def _untied(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors under one name each, as safetensors' ``save_model`` does, and which name stays for which."""
    seen: dict[object, str] = {}
    tensors, kept = {}, {}
    for key, value in state.items():
        if not hasattr(value, "untyped_storage"):
            continue
        where = (value.data_ptr(), value.storage_offset(), value.shape, value.stride())
        if value.numel() and where in seen:
            kept[key] = seen[where]
            continue
        seen[where] = key
        tensors[key] = value.detach().contiguous().clone()
    return tensors, kept


def _plain(history: History, tensors: Mapping[str, Any], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    if history.form == "safetensors":
        save_file(dict(tensors), str(path), metadata={"format": "pt"})
        return
    keys, weight_map, kind = list(tensors), {}, "safetensors" if history.form[0] == "s" else "bin"
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        name = f"a-0000{number}-of-00002.{kind}"
        weight_map.update(dict.fromkeys(part, name))
        shard = {k: tensors[k] for k in part}
        if kind == "bin":
            torch.save(shard, path.parent / name)
        else:
            save_file(shard, str(path.parent / name), metadata={"format": "pt"})
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
