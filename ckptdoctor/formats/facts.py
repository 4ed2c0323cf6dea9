"""Facts that no shape shows, from hyper-parameters inside a checkpoint and configurations beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ckptdoctor.facts import Fact, agreed, facts_of
from ckptdoctor.formats.base import Archive
from ckptdoctor.formats.inert import Inert
from ckptdoctor.formats.walk import Place

# transformers and most others; Meta's LLaMA; litgpt; plain trainers; PEFT.
BESIDE = (
    "config.json",
    "params.json",
    "lit_config.json",
    "model_config.json",
    "hparams.json",
    "adapter_config.json",
)
LARGEST = 1 << 20  # bytes of a configuration; more is something else
DEEPEST = 4  # levels below the top at which hyper-parameters are looked for


def facts_inside(places: Iterator[Place]) -> tuple[Fact, ...]:
    """Facts among the mappings and objects around the state dicts; what disagrees is left out."""
    return agreed(fact for place in places for fact in _facts_at(place))


def _facts_at(place: Place) -> tuple[Fact, ...]:
    if place.kind or place.depth > DEEPEST or _in_optimizer(place):
        return ()
    node = place.node
    entries = node.attributes() if isinstance(node, Inert) else node
    where = f"`{place.path}` in the checkpoint" if place.path else "the checkpoint's envelope"
    return facts_of(entries, where) if isinstance(entries, dict) else ()


def _in_optimizer(place: Place | None) -> bool:
    while place is not None:
        if place.kind == "optimizer":
            return True
        place = place.parent
    return False


def with_facts(archive: Archive) -> Archive:
    """The archive with what is known beside it; every state dict's tree carries all facts."""
    facts = (*archive.facts, *_beside(os.path.dirname(archive.path)))
    if not facts:
        return archive
    dicts = tuple(replace(sd, tree=replace(sd.tree, facts=facts)) for sd in archive.state_dicts)
    return replace(archive, facts=facts, state_dicts=dicts)


def _beside(folder: str) -> tuple[Fact, ...]:
    at = os.path.join(folder, "")
    there = [n for n in BESIDE if os.access(at + n, os.F_OK)]  # seldom any; the fastest way to ask
    return tuple(f for n in there for f in facts_of(_object(at + n), f"{n} beside the checkpoint"))


def _object(file: str) -> dict[Any, Any]:
    """The JSON object in a small file; anything else is no configuration and holds nothing."""
    try:
        if not os.path.isfile(file) or os.path.getsize(file) > LARGEST:
            return {}
        with open(file, encoding="utf-8") as stream:
            data = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
