"""Other spellings for parts of networks, for mutations. Collected apart from the engine's own table."""

from __future__ import annotations

import random
import re

# One row a concept. A segment is renamed when its stem (without trailing number) is in a row.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("attn", "attention", "self_attn", "self_attention", "mha", "SelfAttention"),
    (
        "cross_attn",
        "encoder_attn",
        "cross_attention",
        "crossattention",
        "encoder_attention",
        "EncDecAttention",
    ),
    ("mlp", "ffn", "feed_forward", "ff", "feedforward"),
    ("norm", "ln", "layer_norm", "layernorm", "LayerNorm"),
    ("bn", "batchnorm", "batch_norm", "norm"),
    ("conv", "convolution", "conv2d"),
    ("fc", "linear", "dense", "lin"),
    ("downsample", "shortcut", "skip", "skip_connection"),
    ("q_proj", "query", "to_q", "q", "query_proj", "q_lin", "linear_q"),
    ("k_proj", "key", "to_k", "k", "key_proj", "k_lin", "linear_k"),
    ("v_proj", "value", "to_v", "v", "value_proj", "v_lin", "linear_v"),
    ("out_proj", "o_proj", "to_out", "out_lin", "output_proj", "linear_out"),
    ("gate_proj", "gate", "gate_linear"),
    ("up_proj", "up_linear"),
    ("down_proj", "down_linear"),
    ("head", "classifier", "cls_head", "classification_head"),
    ("embed_tokens", "word_embeddings", "tok_embeddings", "token_embedding", "wte", "tok_emb"),
    ("pos_embed", "position_embedding", "pos_embedding", "positional_embedding", "position_embeddings"),
    ("cls_token", "class_token", "class_embedding"),
    ("patch_embed", "patch_embedding", "patch_embeddings", "to_patch_embedding"),
    ("blocks", "layers", "layer", "h", "resblocks"),
    ("stages", "stage"),
    ("lm_head", "output_projection", "embed_out"),
    ("pooler", "pool"),
    ("final_layer_norm", "ln_f", "norm_f", "final_norm"),
)

# Names that tell nothing.
NEUTRAL = (
    "amber", "birch", "cobalt", "dune", "ember", "flint", "grove", "hazel", "iris", "jade", "karst", "lotus",
    "maple", "nimbus", "onyx", "pebble", "quartz", "raven", "sable", "tundra", "umber", "violet", "willow",
)  # fmt: skip

# Wrapper and base names that people put in front of, or between, the parts of a path.
PREFIXES = (
    "module",
    "_orig_mod",
    "model",
    "net",
    "network",
    "backbone",
    "my_model",
    "learner.net",
    "module.model",
)
INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
GROUPS = ("body", "inner", "trunk", "core", "main")

_NUMBERED = re.compile(r"^(.*?)(_?)(\d+)$")
_NORM = {"norm", "ln", "layer_norm", "layernorm", "LayerNorm", "bn", "batchnorm", "batch_norm"}


def split_number(segment: str) -> tuple[str, str]:
    """``"norm_1"`` -> ``("norm", "1")``; without a trailing number the second is empty."""
    match = _NUMBERED.match(segment)
    return (match[1], match[3]) if match and match[1] else (segment, "")


def synonym(rng: random.Random, segment: str) -> str:
    """Another spelling of a segment, or the same where the table knows none."""
    stem, number = split_number(segment)
    rows = [row for row in SYNONYMS if stem in row]
    if not rows:
        return segment
    other = rng.choice([w for w in rng.choice(rows) if w != stem])
    return other + (rng.choice(("", "_")) + number if number else "")


def is_norm(segment: str) -> bool:
    """Whether a segment says that its module normalises."""
    return split_number(segment)[0] in _NORM


def neutral(rng: random.Random, count: int) -> list[str]:
    """``count`` different names that tell nothing, in no order."""
    words = [w if i < len(NEUTRAL) else f"{w}{rng.choice('abcdefgh')}" for i, w in enumerate(NEUTRAL * 3)]
    return rng.sample(list(dict.fromkeys(words)), count)
