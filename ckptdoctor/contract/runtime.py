"""Migrations while a program runs: plain ``model.load_state_dict(old)`` goes through them."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.contract.migration import FILE_NAME, Migration, read_migration
from ckptdoctor.errors import ApplyError, ContractError
from ckptdoctor.keys import printable
from ckptdoctor.plan.marks import shape_mark, tree_mark

if TYPE_CHECKING:
    from torch import Tensor, nn

ENTRY = "ckptdoctor"  # beside `version` in a state dict's `_metadata`: the newest migration of the writer

Values = Mapping[str, "Tensor | None"]  # None: the model's own value, which no file holds


def register_migrations(model: nn.Module, folder: str | os.PathLike[str]) -> Handle:
    """Let ``model.load_state_dict`` take the checkpoints of older releases, through committed migrations.

    ``folder`` is ``ckpt/migrations/NAME``, or ``ckpt/migrations`` with all of them. A state dict whose names
    and shapes are those that a migration starts from is changed on its way in, by that migration and all
    behind it, and then loaded by torch as ever; every other one is left alone, and so is the caller's dict.
    State dicts saved from now on carry the number of the newest migration in their ``_metadata``.

    Returns a handle with ``remove()``. Raises :class:`~ckptdoctor.errors.ContractError` for a folder that is
    not there, and for migrations that are no unbroken chain.

    >>> register_migrations(model, "ckpt/migrations/net")               # doctest: +SKIP
    >>> model.load_state_dict(torch.load("release_1.0.pth"))            # doctest: +SKIP
    <All keys matched successfully>
    """
    from torch import nn

    hooked: Any = model  # torch's own hooks are not typed
    chains = read_chains(Path(folder))
    newest = max((chain[-1].number for chain in chains if chain), default=0)
    hook = _Hook(chains)
    handles = (
        hooked._register_load_state_dict_pre_hook(hook, with_module=True),
        hooked.register_load_state_dict_post_hook(hook.after),
        hooked._register_state_dict_hook(_Stamp(newest)),
    )
    # A class with a version of its own reads it; only torch's default is ours to raise.
    if newest and type(model)._version == nn.Module._version:
        model._version = nn.Module._version + newest
    return Handle(handles)


@dataclass(frozen=True)
class Handle:
    """Takes the hooks away again."""

    handles: tuple[Any, ...]

    def remove(self) -> None:
        """``load_state_dict`` is as before."""
        for handle in self.handles:
            handle.remove()


def read_chains(folder: Path) -> list[tuple[Migration, ...]]:
    """The migrations below a folder, one chain for each folder that holds some."""
    if not folder.is_dir():
        if (folder.parent.parent / f"{folder.name}.tree").is_file():
            return []  # a model with a lock and without migrations
        raise ContractError(
            f"{printable(str(folder))} is no folder of migrations; "
            "`ckptdoctor migrate --write` makes them in ckpt/migrations"
        )
    files: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*.toml")):
        if FILE_NAME.fullmatch(path.name):
            files.setdefault(path.parent, []).append(path)
    return [_chain(paths) for paths in files.values()]


def _chain(paths: Sequence[Path]) -> tuple[Migration, ...]:
    found: list[Migration] = []
    for path in paths:
        migration = read_migration(path.read_text(encoding="utf-8"), str(path))
        before = found[-1].digest if found else ""
        if migration.number != len(found) + 1 or migration.after != before:
            raise ContractError(
                f"{printable(str(path))} does not follow the migration before it; `ckptdoctor check` says why"
            )
        found.append(migration)
    return tuple(found)


class _Stamp:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(
        self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]
    ) -> None:
        local_metadata[ENTRY] = self.number


class _Hook:
    """The pre-hook: finds the way from what comes to what the model is, and goes it."""

    def __init__(self, chains: Sequence[tuple[Migration, ...]]) -> None:
        self.chains = [[(tree_mark(m.source.specs), tree_mark(m.target.specs), m) for m in c] for c in chains]
        self.added: list[tuple[MutableMapping[str, Any], str]] = []

    def __call__(
        self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: Mapping[str, Any], *_: Any
    ) -> None:
        import torch

        own = {
            key[len(prefix) :]: value
            for key, value in state_dict.items()
            if key.startswith(prefix) and isinstance(value, torch.Tensor)
        }
        mark = shape_mark((key, tuple(value.shape)) for key, value in own.items())
        if not any(mark == start for chain in self.chains for start, _, _ in chain):
            return
        current = module.state_dict(keep_vars=True)
        goal = shape_mark((k, tuple(v.shape)) for k, v in current.items() if isinstance(v, torch.Tensor))
        path = self.path(mark, goal, local_metadata.get(ENTRY))
        if path:
            self.move(state_dict, prefix, own, path, current)

    def path(self, mark: str, goal: str, version: object) -> list[Migration]:
        """The migrations from one mark to another; none when there is no way, or none is needed."""
        since = version if isinstance(version, int) else 0
        ways = [way for chain in self.chains for way in _ways(chain, mark, goal, since)]
        if isinstance(version, int) and ways:
            return ways[0]
        if mark == goal:
            ways.append([])
        if len({repr(_meaning(way)) for way in ways}) < 2:
            return ways[0] if ways and _meaning(ways[0]) else []
        first = next(way for way in ways if way)
        raise ApplyError(
            f"this state dict may be older or newer than {first[-1].name}: names and shapes are the same "
            "before and after, and it carries no version (safetensors files never do). Convert older files "
            f"once, with `ckptdoctor apply {first[0].name} OLD -o NEW`, and mark what is up to date with "
            f'`state_dict._metadata = {{"": {{"{ENTRY}": {first[-1].number}}}}}`'
        )

    def move(
        self, state_dict: Any, prefix: str, own: Mapping[str, Tensor], path: Sequence[Migration], current: Any
    ) -> None:
        """Put the new tensors in the place of the old ones; nothing is changed when one cannot be made."""
        values: Values = dict(own)
        for migration in path:
            values = run(migration, values)
        made = {key: current[key].detach() if value is None else value for key, value in values.items()}
        for key in own:
            del state_dict[prefix + key]
        for key, value in made.items():
            state_dict[prefix + key] = value
        metadata = getattr(state_dict, "_metadata", None)
        if isinstance(metadata, MutableMapping) and not prefix:
            self.hand_on(metadata, path)

    def hand_on(self, metadata: MutableMapping[str, Any], path: Sequence[Migration]) -> None:
        """Versions of modules under their new names, so that no module takes its tensors for older ones."""
        versions = {p: e["version"] for p, e in metadata.items() if isinstance(e, Mapping) and "version" in e}
        for migration in path:
            versions = _moved(migration, versions)
        for module_path, version in versions.items():
            if module_path not in metadata:
                metadata[module_path] = {"version": version}
                self.added.append((metadata, module_path))

    def after(self, module: nn.Module, incompatible_keys: Any) -> None:
        """The caller's ``_metadata`` is left as it was."""
        for metadata, path in self.added:
            metadata.pop(path, None)
        self.added.clear()


def _ways(
    chain: Sequence[tuple[str, str, Migration]], mark: str, goal: str, since: int
) -> list[list[Migration]]:
    """From each place in the chain where the state dict may stand to the chain's end, if that is the goal."""
    ways = []
    for place, (start, _, migration) in enumerate(chain):
        if start != mark or migration.number <= since:
            continue
        way, at = [], mark
        for begin, end, step in chain[place:]:
            if begin == at:
                way.append(step)
                at = end
        if at == goal:
            ways.append(way)
    return ways


def _meaning(way: Sequence[Migration]) -> dict[str, Any]:
    """What becomes of every key, apart from the migrations that say so; ``{}`` when nothing changes."""
    if not way:
        return {}
    made: dict[str, Any] = {key: key for key in way[0].source.specs}
    for migration in way:
        fills = migration.expansion.fills
        before = made
        made = {}
        for key in fills:
            fill = fills[_anchor(fills, key)]
            parts = [before[s] for s in fill.sources]
            plain = fill.kind == "load" and not fill.ops and len(parts) == 1
            made[key] = parts[0] if plain else (fill.kind, parts, fill.ops)
    return {} if all(key == value for key, value in made.items()) else made


def run(migration: Migration, values: Values) -> dict[str, Tensor | None]:
    """The tensors after one migration. Raises :class:`ApplyError` when its plan cannot be kept to."""
    from ckptdoctor.ops import parse_chain
    from ckptdoctor.ops.bits import same_bits

    expansion = migration.expansion
    for copy, original in expansion.copies.items():
        one, other = values[copy], values[original]
        if one is not None and other is not None and not same_bits(one, other):
            raise ApplyError(
                f"{migration.name} drops `{printable(copy)}` as a copy of `{printable(original)}`; it is none"
            )
    made: dict[str, Tensor | None] = {}
    for key, fill in expansion.fills.items():
        if fill.kind == "tie":
            continue
        sources = [values[s] for s in fill.sources]
        known = [s for s in sources if s is not None]
        if fill.kind != "load" or not known:
            made[key] = None
        elif len(known) < len(sources):
            raise ApplyError(
                f"{migration.name} makes `{printable(key)}` of tensors that the checkpoint does not hold"
            )
        else:
            made[key] = parse_chain(fill.ops).run(known) if fill.ops else known[0]
    for key, fill in expansion.fills.items():
        if fill.kind == "tie":
            made[key] = made[_anchor(expansion.fills, key)]
    _check_ties(migration, made)
    return {key: made[key] for key in expansion.fills}


def _check_ties(migration: Migration, made: Values) -> None:
    """Names of one tensor hold one value; torch would keep the last."""
    from ckptdoctor.ops.bits import same_bits

    for group in migration.target.ties:
        known = {key: value for key in group if (value := made[key]) is not None}
        first = next(iter(known), "")
        for key, value in known.items():
            if not same_bits(known[first], value):
                raise ApplyError(
                    f"{migration.name}: `{printable(first)}` and `{printable(key)}` are one tensor of the "
                    "model, and the checkpoint has two different ones"
                )


def _anchor(fills: Mapping[str, Any], key: str) -> str:
    while fills[key].kind == "tie":
        key = fills[key].tied_to
    return key


def _moved(migration: Migration, versions: Mapping[str, Any]) -> dict[str, Any]:
    wrote: dict[str, set[Any]] = {}
    for key, fill in migration.expansion.fills.items():
        if fill.kind == "load":
            found = {versions.get(source.rpartition(".")[0]) for source in fill.sources}
            wrote.setdefault(key.rpartition(".")[0], set()).update(found)
    known = {path: next(iter(found)) for path, found in wrote.items() if len(found) == 1}
    return {path: version for path, version in known.items() if version is not None}
