"""Numbers that shapes do not show: head counts, rotary sizes, LoRA's alpha; where each was found.

They come from a configuration beside the checkpoint, from hyper-parameters inside it, from the model's
own attributes, or from a person (``--value num_attention_heads=32``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# What each fact is called: the name used here (transformers' where it has one), then other spellings.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "nhead", "n_attention_heads"),
    "num_key_value_heads": (
        "n_kv_heads", "num_kv_heads", "n_query_groups", "num_query_groups", "n_head_kv",
        "multi_query_group_num",
    ),
    "head_dim": ("d_head", "head_size", "kv_channels", "attention_head_size", "dim_head"),
    "hidden_size": ("d_model", "n_embd", "embed_dim", "dim", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers", "depth"),
    "vocab_size": ("n_vocab",),
    "rotary_dim": ("rope_n_elem",),
    "rotary_pct": ("partial_rotary_factor", "rotary_percentage"),
    "num_experts": ("num_local_experts", "n_expert", "n_experts"),
    "window_size": (),
    "multi_query": (),
    "new_decoder_architecture": (),
    "checkpoint_version": (),
    "mp_num": (),
    "lora_alpha": (),
    "lora_rank": ("lora_r",),
    "use_rslora": (),
    "use_dora": (),
    "fan_in_fan_out": (),
    "batch_norm_eps": ("bn_eps",),
    "rms_norm_offset": (),
}  # fmt: skip

# What RMSNorm adds to its stored weight, by `model_type`: `weight` or `1 + weight`. Families of one naming
# differ in it. Source: the `forward` of each `...RMSNorm` in transformers 5.24 `models/*/modeling_*.py`.
RMS_NORM_OFFSETS = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "phi3"), 0),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma", "qwen3_next"), 1),
}

_CANONICAL = {s: name for name, others in SPELLINGS.items() for s in (name, *others)}


@dataclass(frozen=True, slots=True)
class Fact:
    """One number and where it was found, in words: ``config.json beside the checkpoint``."""

    name: str
    value: float
    where: str


def canonical(name: str) -> str | None:
    """The name used here for a spelling; None for what is no known fact.

    >>> canonical("n_kv_heads")
    'num_key_value_heads'
    """
    return _CANONICAL.get(name)


def facts_of(entries: Mapping[Any, Any], where: str) -> tuple[Fact, ...]:
    """The known facts among named values; a fact with two unlike values is none."""
    found = [
        Fact(name, value, where)
        for key, value in entries.items()
        if isinstance(key, str) and (name := canonical(key)) and is_number(value)
    ]
    family = entries.get("model_type")
    if isinstance(family, str) and family in RMS_NORM_OFFSETS:
        found.append(Fact("rms_norm_offset", RMS_NORM_OFFSETS[family], f"model_type {family}, {where}"))
    return agreed(found)


def is_number(value: Any) -> bool:
    """A finite number of sane size, 0 or more; a flag counts as 0 or 1."""
    return isinstance(value, int | float) and 0 <= value < 1 << 48


def agreed(found: Iterable[Fact]) -> tuple[Fact, ...]:
    """One fact for each name on which all of one origin agree."""
    values: dict[str, Fact] = {}
    gone: set[str] = set()
    for fact in found:
        if values.setdefault(fact.name, fact).value != fact.value:
            gone.add(fact.name)
    return tuple(f for n, f in values.items() if n not in gone)
