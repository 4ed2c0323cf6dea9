"""Plans as Python that needs torch and nothing else: a script, and a hook for a model's own source."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from ckptdoctor.plan.export.moves import Moves
from ckptdoctor.plan.export.tensors import HELPERS

INDENT = "    "

_HEAD = {
    "python": '''\
"""Converts a checkpoint, exactly as a plan of ckptdoctor says; needs torch only.

    python convert.py OLD.pth NEW.pth

or ``convert(state_dict)`` in a program. Made by `ckptdoctor plan --format python`.
"""
''',
    "hook": '''\
"""Lets ``model.load_state_dict`` take older checkpoints, as a plan of ckptdoctor says; needs torch only.

Call ``install(self)`` at the end of the model's ``__init__``. Made by `ckptdoctor plan --format hook`.
"""
''',
}

_MARK = '''\
def mark(tensors):
    """A digest of names and shapes."""
    rows = sorted((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    text = "\\n".join(f"{name!a} {list(shape)}" for name, shape in rows)
    return hashlib.sha256(text.encode()).hexdigest()
'''

_RENAME = '''\
def rename(name):
    """The model's name of a tensor that stays as it is."""
    if name in NAMES:
        return NAMES[name]
    for old, new in PREFIXES:
        if name.startswith(old):
            return new + name[len(old) :]
    return name
'''

_MOVE = '''\
def move(old, own):
    """The new tensors; ``own(name)`` gives the model's own value."""
    for name, other in COPIES.items():
        if not same(old[name], old[other]):
            raise RuntimeError(f"{name} is no copy of {other}, which the plan relies on")
    new = {rename(name): tensor for name, tensor in old.items() if name not in USED}
    for name, (sources, make) in MADE.items():
        new[name] = make([old[source] for source in sources])
    for name in OWN:
        new[name] = own(name)
    for name, dtype in DTYPES.items():
        new[name] = new[name].to(dtype)
    for name, other in TIED.items():
        new[name] = new[other]
    for first, *others in TIES:
        if not all(same(new[first], new[name]) for name in others):
            raise RuntimeError(f"{first} and {others} are one tensor of the model and have different values")
    if mark(new) != AFTER:
        raise RuntimeError("the result has not the names and shapes that the plan promises")
    return new
'''

_SAME = '''\
def same(one, other):
    """Whether every bit agrees."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(one, other)
'''

_CONVERT = '''\
def convert(old, initial=None):
    """A new state dict; ``initial`` is ``model.state_dict()``, for values that stay the model's own."""
    tensors = {name: value for name, value in old.items() if isinstance(value, torch.Tensor)}
    if mark(tensors) != BEFORE:
        raise ValueError("these are not the names and shapes that the plan was made for")

    def own(name):
        if initial is not None:
            return initial[name].detach().clone()
        if name in COUNTERS:
            return torch.tensor(0)
        raise ValueError(f"the plan keeps the model's own {name}; give initial=model.state_dict()")

    new = OrderedDict(move(tensors, own))
    metadata = getattr(old, "_metadata", None)
    if metadata is not None:
        moved = {path: metadata[was] for path, was in MODULES.items() if was in metadata}
        new._metadata = OrderedDict({**metadata, **moved})
    return new


def find(checkpoint, path):
    """The state dict at a path such as ``model.ema`` or ``models[0]``."""
    if not path:
        return checkpoint
    if isinstance(checkpoint, dict):
        for name in sorted(map(str, checkpoint), key=len, reverse=True):
            if path == name:
                return checkpoint[name]
            if path.startswith((name + ".", name + "[")):
                return find(checkpoint[name], path[len(name) :].removeprefix("."))
    if path.startswith("["):
        number, _, rest = path[1:].partition("]")
        return find(checkpoint[int(number)], rest.removeprefix("."))
    raise KeyError(path)


def load(file):
    """What is in a file; nothing in it is run."""
    if file.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2].endswith(".safetensors"):
        sys.exit("usage: python convert.py OLD NEW.pth")
    torch.save(convert(find(load(sys.argv[1]), STATE_DICT)), sys.argv[2])
'''

_HOOK = '''\
def upgrade(module, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs):
    """Put new tensors in the place of old ones, if they are what the plan was made for."""
    old = {
        name[len(prefix) :]: value
        for name, value in state_dict.items()
        if name.startswith(prefix) and isinstance(value, torch.Tensor)
    }
    if mark(old) != BEFORE or is_new(local_metadata.get("version")):
        return
    current = module.state_dict(keep_vars=True)
    new = move(old, lambda name: current[name].detach())
    for name in old:
        del state_dict[prefix + name]
    for name, value in new.items():
        state_dict[prefix + name] = value
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None and not prefix:
        for path, was in MODULES.items():
            if was in metadata and path not in metadata:
                metadata[path] = metadata[was]


def is_new(version):
    """Whether a state dict that looks like an old one was written after the change."""
    if version is None and BEFORE == AFTER:
        raise RuntimeError("old and new checkpoints have the same names, and this one has no version")
    return version is not None and version >= VERSION


def install(model):
    """Let this model, alone or as a part of another, load what the plan was made for."""
    model._version = VERSION
    return model._register_load_state_dict_pre_hook(upgrade, with_module=True)
'''


def script(moves: Moves, before: str, after: str, state_dict: str) -> str:
    """``--format python``."""
    head = ["import hashlib", "import sys", "from collections import OrderedDict", "", "import torch"]
    known = [f"STATE_DICT = {state_dict!a}", f"COUNTERS = {_list(moves.counters)}"]
    data = [*_data(moves, before, after), *known]
    return _program("python", head, data, moves, [_CONVERT])


def hook(moves: Moves, before: str, after: str, version: int = 2) -> str:
    """``--format hook``; ``version`` is what the model's state dicts carry from now on."""
    head = ["import hashlib", "", "import torch"]
    return _program("hook", head, [f"VERSION = {version}", *_data(moves, before, after)], moves, [_HOOK])


def _program(form: str, imports: list[str], data: list[str], moves: Moves, last: list[str]) -> str:
    made = "".join(text for _, text in moves.made.values())
    used = [name for name in HELPERS if re.search(rf"\b{name}\(", made)]
    needed = {*used, *(name for name in HELPERS for u in used if f"{name}(" in HELPERS[u])}
    helpers = [source for name, source in HELPERS.items() if name in needed]
    # The table of what is made calls the helpers only when it is used, so it may stand above them.
    parts = [_HEAD[form], "\n".join(imports) + "\n", "\n".join(data) + "\n"]
    top = "\n".join(parts)
    return "\n\n".join([top, *helpers, _MARK, _SAME, _RENAME, _MOVE, *last])


def _data(moves: Moves, before: str, after: str) -> list[str]:
    renamed = set(moves.plain)
    used = {s for sources, _ in moves.made.values() for s in sources} | set(moves.dropped)
    made = {key: f"({_tuple(sources)}, lambda t: {text})" for key, (sources, text) in moves.made.items()}
    return [
        f"BEFORE = {before!r}  # names and shapes of the checkpoint",
        f"AFTER = {after!r}  # and of the model",
        f"PREFIXES = {_rows(f'({a!a}, {b!a})' for a, b in moves.names.prefixes)}",
        f"NAMES = {_table({k: ascii(v) for k, v in moves.names.whole.items()})}",
        f"USED = {_list(sorted(used - renamed))}  # not renamed: left out, or made into others",
        f"MADE = {_table(made)}",
        f"OWN = {_list(moves.own)}",
        f"TIED = {_table({k: ascii(v) for k, v in moves.tied.items()})}",
        f"TIES = {_rows(map(_tuple, moves.ties))}",
        f"DTYPES = {_table({k: f'torch.{dtype}' for k, dtype in moves.casts.items()})}",
        f"COPIES = {_table({k: ascii(v) for k, v in moves.copies.items()})}",
        f"MODULES = {_table({k: ascii(v) for k, v in moves.modules.items()})}",
    ]


def _list(items: Collection[str]) -> str:
    return _rows(ascii(item) for item in items)


def _rows(items: Iterable[str]) -> str:
    lines = [f"{INDENT}{item},\n" for item in items]
    return "[\n" + "".join(lines) + "]" if lines else "[]"


def _table(items: Mapping[str, str]) -> str:
    lines = [f"{INDENT}{key!a}: {value},\n" for key, value in items.items()]
    return "{\n" + "".join(lines) + "}" if lines else "{}"


def _tuple(items: Collection[str]) -> str:
    return "(" + "".join(f"{item!a}, " for item in items).rstrip() + ")"
