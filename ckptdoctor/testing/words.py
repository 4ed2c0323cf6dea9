"""Words for histories: what is put in front of keys, around modules, and in the place of names."""

from __future__ import annotations

PREFIXES = ("module", "_orig_mod", "model", "net", "backbone", "module.model", "learner.net", "my_model")
INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NESTED = ("body", "inner", "trunk", "core", "main", "ember")
OTHER_WORDS = (
    "raven",
    "sable",
    "tundra",
    "umber",
    "violet",
    "willow",
    "quartz",
    "pebble",
    "nimbus",
    "maple",
    "karst",
)

# One row a concept, collected apart from the engine's own table. Numbers at the end are kept.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("attn", "attention", "self_attn", "self_attention", "mha"),
    ("mlp", "ffn", "feed_forward", "ff"),
    ("norm", "ln", "layer_norm", "layernorm"),
    ("bn", "batchnorm", "batch_norm"),
    ("conv", "convolution"),
    ("fc", "linear", "dense", "lin"),
    ("downsample", "shortcut", "skip"),
    ("q_proj", "query", "to_q", "q"),
    ("k_proj", "key", "to_k", "k"),
    ("v_proj", "value", "to_v", "v"),
    ("out_proj", "o_proj", "to_out"),
    ("gate_proj", "gate"),
    ("up_proj", "up_linear"),
    ("down_proj", "down_linear"),
    ("head", "classifier", "cls_head"),
    ("blocks", "layers", "layer", "h"),
    ("embed", "embedding", "emb"),
    ("encoder", "enc"),
    ("decoder", "dec"),
)
