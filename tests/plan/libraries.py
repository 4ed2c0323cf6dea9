"""The key mappings of two libraries, as their sources have them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence


def mmengine(keys: Iterable[str], revise_keys: Sequence[tuple[str, str]]) -> dict[str, str]:
    """mmengine 0.10.7, `mmengine/runner/checkpoint.py`, `_load_checkpoint_to_model`."""
    state_dict = {key: key for key in keys}
    for p, r in revise_keys:
        state_dict = {re.sub(p, r, k): v for k, v in state_dict.items()}
    return {old: new for new, old in state_dict.items()}


def transformers(keys: Iterable[str], key_mapping: Mapping[str, str]) -> dict[str, str]:
    """transformers 5.24.0, `core_model_loading.py`: `WeightTransform.__init__`, `rename_source_key`."""
    renamings = [(compiled(source), target_pattern(target)) for source, target in key_mapping.items()]
    renamed = {}
    for key in keys:
        name = key
        for source, target in renamings:
            found = source.search(name)
            if found is not None:
                name = name.replace(found.group(0), target, 1)
        renamed[key] = name
    return renamed


def compiled(source: str) -> re.Pattern[str]:
    pattern = source.replace("*.", r".*\.")
    if re.search(r"[a-zA-Z0-9]$", pattern):
        pattern += r"(?!\w)"
    return re.compile(f"(?P<g0>{pattern})")


def target_pattern(target: str) -> str:
    """`process_target_pattern`, without the groups that no target of ours has."""
    pattern = re.sub(r"\(\?.+?\)?\)", "", target.removeprefix("^"))
    assert not re.search(r"\(.+?\)", pattern)
    return pattern.replace(r"\.", ".")
