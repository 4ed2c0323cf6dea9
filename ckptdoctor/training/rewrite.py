"""Writing a checkpoint again without its bad habits, or a part of it. No model is needed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdoctor.errors import ApplyError, DecisionError, UndecidedError, VerifyError
from ckptdoctor.formats import open_checkpoint
from ckptdoctor.formats.base import Archive, StateDict
from ckptdoctor.formats.content import Leaf, Opaque, leaf_reader
from ckptdoctor.formats.tensors import TensorReader
from ckptdoctor.formats.walk import join
from ckptdoctor.keys import printable
from ckptdoctor.training.average import resolve
from ckptdoctor.training.lint import anonymous, posix, removable
from ckptdoctor.training.private import Copies
from ckptdoctor.training.source import of_archive

# Objects whose attributes, or first argument, say all that there is of them.
AS_DICT = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
AS_ARGUMENT = frozenset({
    "collections.Counter", "collections.deque", "torch.Size", "torch.torch_version.TorchVersion",
})  # fmt: skip
DICT_LIKE = ("AttributeDict", "EasyDict", "CfgNode", "ConfigDict", "addict.addict.Dict")


@dataclass(frozen=True)
class Written:
    """What was written: ``tensors`` and ``values``; ``changes`` in words."""

    source: str
    out: str
    tensors: int
    values: int
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"wrote {self.tensors:,} tensors ({self.values:,} values) of {self.source} to {self.out}"]
        return "\n".join([*lines, *(f"  {words}" for words in self.changes)])

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "format": 1, "source": self.source, "out": self.out, "tensors": self.tensors,
            "values": self.values, "changes": list(self.changes),
        }  # fmt: skip


def lint_fix(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Written:
    """Write the checkpoint again: bare keys, CPU, contiguous, nothing hidden, plain values, no private paths.

    Every value is kept; an object that cannot be kept without its class is an error that names it. Raises
    ``ReadError`` or :class:`~ckptdoctor.errors.ApplyError`; then ``out`` is as it was.
    """
    from ckptdoctor.writers import check_out

    check_out(Path(out))
    archive = open_checkpoint(path)
    work = _Rewriter(archive)
    root = work.root()
    if Path(out).suffix.lower() == ".safetensors" and not work.is_weights:
        raise ApplyError(
            f"{printable(archive.path)} holds more than weights; write a .pth file, or the weights alone: "
            f"ckptdoctor strip {printable(archive.path)} -o {printable(str(out))}"
        )
    return _write(root, archive, Path(out), tuple(work.changes), work.written)


def extract(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    choose: str = "",
    submodule: str = "",
    keep_prefix: bool = False,
) -> Written:
    """Write one state dict, or the part of it under ``submodule``, as a plain file of weights.

    ``choose`` is its path in the file, ``"ema"`` or ``"raw"``; needed where there are several. Keys lose
    their wrappers, and the submodule's name unless ``keep_prefix``. Raises
    :class:`~ckptdoctor.errors.UndecidedError` (several state dicts), ``DecisionError`` (no such one),
    ``ReadError`` or ``ApplyError``.
    """
    from ckptdoctor.decisions import Decision
    from ckptdoctor.writers import check_out

    check_out(Path(out))
    archive = open_checkpoint(path)
    if choose:
        archive, found = resolve(archive, (Decision("choose", choose),))
        choose = found[0].value if found else ""
    chosen = _chosen(archive, choose)
    names = removable(chosen) or {k: k for k in chosen.tree.specs}
    if submodule:
        names = _below(names, submodule, keep_prefix, archive.path)
    work = _Rewriter(archive)
    state = work.state_dict(chosen, names)
    more = [s for s in archive.state_dicts if s.path != chosen.path]
    left = [*(s.path or "the top level" for s in more), *archive.rest]
    changes = [*work.changes, *([f"left out: {', '.join(map(printable, left))}"] if left else [])]
    return _write(state, archive, Path(out), tuple(changes), work.written)


def _chosen(archive: Archive, choose: str) -> StateDict:
    named = {s.path: s for s in archive.state_dicts if len(s.tree)}
    if choose:
        if choose not in named:
            have = ", ".join(f"`{printable(p)}`" for p in named) or "none"
            raise DecisionError(
                f"{printable(archive.path)} has no state dict `{printable(choose)}`; it has {have}"
            )
        return named[choose]
    if len(named) == 1:
        return next(iter(named.values()))
    if not named:
        raise DecisionError(f"{printable(archive.path)} holds no state dict")
    training = of_archive(archive)
    others = [p for p in named if p not in training.paths("model")]
    lines = [f"{printable(archive.path)} holds {len(named)} state dicts; choose one:"]
    lines += [f"  --choose {printable(p)}" for p in named if p]
    if training.paths("ema") and others:
        lines.append("  --choose ema, --choose raw   averaged or trained weights")
    raise UndecidedError("\n".join(lines))


def _below(names: dict[str, str], submodule: str, keep_prefix: bool, file: str) -> dict[str, str]:
    head = submodule.rstrip(".") + "."
    kept = {k: n if keep_prefix else n.removeprefix(head) for k, n in names.items() if n.startswith(head)}
    if not kept:
        tops = dict.fromkeys(n.partition(".")[0] for n in names.values())
        raise DecisionError(
            f"{printable(file)}: no key is under `{printable(head)}`; there are "
            + ", ".join(f"`{printable(t)}.`" for t in list(tops)[:12])
        )
    return kept


class _Rewriter:
    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.places = {s.path: s for s in archive.state_dicts}
        self.copies = Copies()
        self.changes: dict[str, None] = {}
        self.written: list[Any] = []
        self.is_weights = True
        self._made: dict[int, Any] = {}

    def root(self) -> Any:
        """The whole file, or its only state dict where there is nothing else."""
        if self.archive.content is None:
            (only,) = self.archive.state_dicts
            return self.state_dict(only, removable(only) or {k: k for k in only.tree.specs})
        made = self.value(self.archive.content.value, "", None)
        self.is_weights = "" in self.places and isinstance(made, OrderedDict)
        return made

    def note(self, words: str) -> None:
        self.changes[words] = None

    def value(self, node: Any, path: str, key: Any) -> Any:
        if path in self.places:
            return self._place(self.places[path], node)
        if isinstance(node, str):
            better = anonymous(key, node)
            if better != node:
                words = f"kept `{printable(better)}` of a path" if better else "left out a name"
                self.note(f"{printable(path)}: {words}")
            return better
        if isinstance(node, int | float | complex | bytes | None):
            return node
        if id(node) not in self._made:
            self._made[id(node)] = self._new(node, path, key)
        return self._made[id(node)]

    def _new(self, node: Any, path: str, key: Any) -> Any:
        if isinstance(node, Leaf):
            return self._leaf(node, path)
        if isinstance(node, Mapping):
            return {k: self.value(v, join(path, k), k) for k, v in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(self.value(v, f"{path}[{i}]", key) for i, v in enumerate(node))
        if isinstance(node, set | frozenset):
            self.note(f"{printable(path)}: a set became a list")
            return sorted((self.value(v, path, key) for v in node), key=repr)
        return self._object(node, path, key)

    def _leaf(self, leaf: Leaf, path: str) -> Any:
        reader = leaf_reader(self.archive, {"x": leaf})
        try:
            tensor = self.copies.tensor(reader("x").clone(), path)
        finally:
            reader.close()
        self.written.append(tensor)
        return tensor

    def _object(self, node: Opaque, path: str, key: Any) -> Any:
        text = posix(node)
        if text is not None:
            self.note(f"{printable(path)}: a path became a text")
            return self.value(text, path, key)
        if node.what == "torch.dtype" and node.args:
            import torch

            return getattr(torch, str(node.args[0]), str(node.args[0]))
        if node.what == "torch.device":
            return ":".join(str(a) for a in node.args)
        if node.what in AS_DICT or (node.what.endswith(DICT_LIKE) and not node.args):
            self.note(f"{printable(path)}: {printable(node.what)} became a dict")
            return {k: self.value(v, join(path, k), k) for k, v in node.attributes.items()}
        if node.what in AS_ARGUMENT and len(node.args) == 1 and not node.attributes:
            self.note(f"{printable(path)}: {printable(node.what)} became what it holds")
            return self.value(node.args[0], path, key)
        raise ApplyError(
            f"{printable(self.archive.path)}: `{printable(path)}` is an object of the class "
            f"{printable(node.what)}, which cannot be kept without that class. The weights alone: "
            f"ckptdoctor strip {printable(self.archive.path)} -o OUT"
        )

    def _place(self, state_dict: StateDict, node: Any) -> Any:
        if id(node) not in self._made:
            names = removable(state_dict) or {k: k for k in state_dict.tree.specs}
            extra = {}
            if isinstance(node, Mapping):
                for k, v in node.items():
                    if not isinstance(v, Leaf):
                        extra[k] = self.value(v, join(state_dict.path, k), k)
            if isinstance(node, list | tuple):
                state: Any = type(node)(self.state_dict(state_dict, names).values())
            else:
                state = self.state_dict(state_dict, names)
                state.update(extra)
            self._made[id(node)] = state
            if isinstance(node, Opaque):
                self.note(
                    f"{printable(state_dict.path or 'the file')}: a pickled module became its state dict"
                )
        return self._made[id(node)]

    def state_dict(self, state_dict: StateDict, names: Mapping[str, str]) -> OrderedDict[str, Any]:
        """Its tensors under the given names, with ``_metadata``."""
        reader = TensorReader(self.archive, state_dict)
        made: OrderedDict[str, Any] = OrderedDict()
        try:
            for key, name in names.items():
                made[name] = self.copies.tensor(reader(key), key)
                self.written.append(made[name])
        finally:
            reader.close()
        renamed = sum(k != n for k, n in names.items())
        if renamed:
            self.note(f"{printable(state_dict.path or 'the file')}: {renamed} keys are shorter")
        vars(made)["_metadata"] = _metadata(state_dict, names)
        return made


def _metadata(state_dict: StateDict, names: Mapping[str, str]) -> OrderedDict[str, dict[str, int]]:
    """The recorded versions; where they are lost, what the tensors prove: a norm that counts is 2."""
    versions = state_dict.tree.versions
    found: OrderedDict[str, dict[str, int]] = OrderedDict({"": {"version": versions.get("", 1)}})
    for key, name in names.items():
        module, _, leaf = name.rpartition(".")
        version = versions.get(key.rpartition(".")[0])
        if version is None and not versions and leaf == "num_batches_tracked":
            version = 2
        if version is not None:
            found[module] = {"version": version}
    return found


def _write(value: Any, archive: Archive, out: Path, changes: tuple[str, ...], tensors: list[Any]) -> Written:
    from ckptdoctor.writers import write_state_dict

    values = value if isinstance(value, Mapping) else {"": value}
    if not isinstance(value, Mapping):
        raise ApplyError(
            f"{printable(archive.path)} is a {type(value).__name__} of tensors, which has no names"
        )
    write_state_dict(values, out, check=_same_as(tensors, out))
    distinct = {id(t): t for t in tensors}.values()
    return Written(archive.path, str(out), len(tensors), sum(t.numel() for t in distinct), changes)


def _same_as(tensors: list[Any], out: Path) -> Callable[[Path], None]:
    """A check of the new file: plain torch loads it, and it has all tensors, bit for bit."""

    def check(new: Path) -> None:
        from ckptdoctor.writers.plain import plain_load

        if {_mark(t) for t in _tensors(plain_load(new))} != {_mark(t) for t in tensors}:
            raise VerifyError(
                f"the new file is not what was to be written; {printable(str(out))} is as it was"
            )

    return check


def _mark(tensor: Any) -> tuple[str, str, str]:
    """What a tensor is: dtype, shape and a digest of its bytes."""
    import hashlib

    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return (str(tensor.dtype), str(tuple(tensor.shape)), hashlib.sha256(data).hexdigest())


def _tensors(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
