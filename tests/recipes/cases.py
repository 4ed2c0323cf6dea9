"""The crossings that are proved: two forward passes on state dicts, and the facts that a config gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu

from tests.recipes.applier import convert
from tests.recipes.models import dinov2 as dinov2_model
from tests.recipes.models import flux, litgpt_layernorm, llamas, megatron_gpt
from tests.recipes.models import lens as lens_model
from tests.recipes.models import swin as swin_model

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 0]])
Forward = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    """``a`` and ``b`` are forward passes on the state dicts of the two sides; ``state`` is one of side b.

    ``plain``: the recipe only renames, joins and takes apart, so nothing is left to leave out. ``skip``: words
    of keys that this variant does not have.
    """

    recipe: str
    title: str
    a: Forward
    b: Forward
    state: Callable[[], dict[str, Tensor]]
    facts: dict[str, int]
    root_a: str = ""
    root_b: str = ""
    plain: bool = False
    skip: tuple[str, ...] = ()
    roots: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roots", {"a": self.root_a, "b": self.root_b})

    def convert(
        self, side: str, state: dict[str, Tensor], ops: bool = True, facts: dict[str, int] | None = None
    ) -> dict[str, Tensor]:
        known = self.facts if facts is None else facts
        return convert(self.recipe, side, state, known, self.roots, self.skip, ops)

    def __str__(self) -> str:
        return f"{self.recipe}: {self.title}"


class Transformers:
    """A model of the transformers library from its config, made when it is first needed."""

    def __init__(self, name: str, **config: Any) -> None:
        self.name, self.config = name, config

    @property
    def model(self) -> torch.nn.Module:
        import transformers

        cls = getattr(transformers, self.name)
        config = cls.config_class(**self.config, attn_implementation="eager")
        return cls(config).double().eval()

    def state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def __call__(self, state: dict[str, Tensor]) -> Tensor:
        return self.run(state, IDS).logits

    def run(self, state: dict[str, Tensor], inputs: Tensor) -> Any:
        model = self.model
        model.load_state_dict({k: state[k] for k in state}, strict=True)
        return model(inputs)


class Written(Transformers):
    """The same model by the names under which transformers writes it: those of version 4, where they differ.

    Its own loader, which knows the old names, carries them into the model.
    """

    def state(self) -> dict[str, Tensor]:
        with TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            return dict(load_file(Path(folder) / "model.safetensors"))

    def run(self, state: dict[str, Tensor], inputs: Tensor) -> Any:
        model = self.model
        loaded, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict={k: state[k] for k in state},
            dtype=torch.float64,
            output_loading_info=True,
        )
        assert not any(info.values()), info
        return loaded.eval()(inputs)


LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 11,
    "rms_norm_eps": llamas.EPS,
    "tie_word_embeddings": False,
}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
DIMS = {"n_heads": 6, "n_kv_heads": 2}


def llama(recipe: str, a: Callable[..., Tensor], title: str, cls: str = "Llama", **more: Any) -> Case:
    """One of transformers' relatives of LLaMA on side b."""
    plain, root_a, skip = more.pop("plain", False), more.pop("root_a", ""), more.pop("skip", ())
    config = {**LLAMA, **more}
    heads = {"n_heads": config["num_attention_heads"], "n_kv_heads": config["num_key_value_heads"]}
    facts = {k: config[k] for k in HEADS}
    b = Transformers(f"{cls}ForCausalLM", **config)
    return Case(recipe, title, lambda s: a(s, IDS, **heads), b, b.state, facts, root_a, "model.", plain, skip)


def between(
    recipe: str, through: str, a: Callable[..., Tensor], b: Callable[..., Tensor], plain: bool = False
) -> Case:
    """Neither side is transformers': the first state dict of b comes through another recipe."""
    llama = Transformers("LlamaForCausalLM", **LLAMA)

    def state() -> dict[str, Tensor]:
        return convert(through, "b", llama.state(), HEADS, {"a": "", "b": "model."})

    def run(forward: Callable[..., Tensor]) -> Forward:
        return lambda s: forward(s, IDS, **DIMS)

    return Case(recipe, "grouped queries", run(a), run(b), state, HEADS, plain=plain)


NEOX = {k: LLAMA[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}
FALCON = {**NEOX, "bias": False, "alibi": False, "tie_word_embeddings": False}


def neox(recipe: str, old: bool) -> Case:
    b = PYTHIA

    def a(state: dict[str, Tensor]) -> Tensor:
        return litgpt_layernorm.litgpt(state, IDS, 6, 6, rotary=4, old=old)

    facts = {"num_attention_heads": 6}
    return Case(recipe, "Pythia", a, b, b.state, facts, "", "gpt_neox.", plain=old, skip=("embed_out",))


def falcon(recipe: str, title: str, kv_heads: int, old: bool, **config: Any) -> Case:
    b = Transformers("FalconForCausalLM", **FALCON, ffn_hidden_size=40, **config)

    def a(state: dict[str, Tensor]) -> Tensor:
        return litgpt_layernorm.litgpt(state, IDS, 6, kv_heads, rotary=8, old=old)

    skip = ("input_layernorm",) if "num_kv_heads" in config else ("ln_attn", "ln_mlp")
    facts = {
        "num_attention_heads": 6
    }  # the 7B model's configuration says as many for k and v, which is not so
    return Case(recipe, title, a, b, b.state, facts, "", "transformer.", old or kv_heads == 1, skip)


FALCON_7B = {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}
FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
FALCON_MHA = {"multi_query": False, "new_decoder_architecture": False, "parallel_attn": True}


PHI3 = Transformers("Phi3ForCausalLM", **LLAMA, pad_token_id=None)


def phi3() -> Case:
    b = Transformers("LlamaForCausalLM", **LLAMA)
    return Case("phi3-llama", "grouped queries", PHI3, b, b.state, HEADS, "model.", "model.", plain=True)


def phi3_litgpt() -> Case:
    def a(state: dict[str, Tensor]) -> Tensor:
        return llamas.litgpt(state, IDS, **DIMS)

    return Case("litgpt-phi3", "grouped queries", a, PHI3, PHI3.state, HEADS, "", "model.", plain=True)


def gemma() -> Case:
    model = Transformers("GemmaModel", **LLAMA, head_dim=8, pad_token_id=None)

    def a(state: dict[str, Tensor]) -> Tensor:
        return llamas.gemma(state, IDS, **DIMS)

    def b(state: dict[str, Tensor]) -> Tensor:
        return model.run(state, IDS).last_hidden_state

    return Case("gemma-pytorch", "grouped queries", a, b, model.state, HEADS, "model.", plain=True)


def lens(
    recipe: str, title: str, root: str, a: Transformers, skip: tuple[str, ...] = (), **model: Any
) -> Case:
    """TransformerLens on side b; its own state dict comes through the recipe, then gets other values."""
    facts = {"num_attention_heads": model.pop("heads", 6)}
    if recipe == "transformer-lens-llama":
        facts["rms_norm_offset"] = 0

    def state() -> dict[str, Tensor]:
        return convert(recipe, "a", a.state(), facts, {"a": root, "b": ""}, skip)

    return Case(
        recipe, title, a, lambda s: lens_model.forward(s, IDS, **model), state, facts, root, skip=skip
    )


GPT2 = Transformers(
    "GPT2LMHeadModel", n_embd=48, n_inner=40, n_layer=2, n_head=6, vocab_size=11, n_positions=9,
    tie_word_embeddings=False,
)  # fmt: skip
BLOOM = Transformers(
    "BloomForCausalLM", hidden_size=48, n_layer=2, n_head=4, vocab_size=11, tie_word_embeddings=False
)
PYTHIA = Transformers(
    "GPTNeoXForCausalLM", **NEOX, intermediate_size=40, rotary_pct=0.5, tie_word_embeddings=False
)


IMAGE = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SWIN_CONFIG = {
    "image_size": 32,
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 3],
    "window_size": swin_model.WINDOW,
    "num_labels": 5,
}
SWIN = Transformers("SwinForImageClassification", **SWIN_CONFIG)
DINO_CONFIG = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "use_swiglu_ffn": True,
    "image_size": 28,
    "patch_size": 14,
}


def swin_openmmlab(state: dict[str, Tensor]) -> Tensor:
    return swin_model.forward(state, IMAGE, swin_model.OPENMMLAB, [2, 3], "head.fc")


def swin(recipe: str, title: str, names: Any, head: str) -> Case:
    """mmpretrain's classifier on side a; the state dict of b comes through transformers' Swin."""
    roots = {"a": "backbone.", "b": "swin."}

    def state() -> dict[str, Tensor]:
        a = convert("swin-openmmlab-transformers", "b", SWIN.state(), {}, roots)
        return convert(recipe, "a", a, {}, {"a": "backbone.", "b": ""})

    def b(state: dict[str, Tensor]) -> Tensor:
        return swin_model.forward(state, IMAGE, names, [2, 3], head)

    return Case(recipe, title, swin_openmmlab, b, state, {}, "backbone.")


def swin_transformers(recipe: str, b: Transformers) -> Case:
    def run(state: dict[str, Tensor]) -> Tensor:
        return b.run(state, IMAGE).logits

    return Case(recipe, "a classifier", swin_openmmlab, run, b.state, {}, "backbone.", "swin.")


def dinov2(recipe: str, b: Transformers, **names: Any) -> Case:
    image = IMAGE[:, :, :28, :28]

    def a(state: dict[str, Tensor]) -> Tensor:
        return dinov2_model.forward(state, image, 3, **names)

    def run(state: dict[str, Tensor]) -> Tensor:
        return b.run(state, image).last_hidden_state

    return Case(recipe, "a small ViT", a, run, b.state, {}, plain=True)


MEGATRON_NORMS = ("input_norm", "post_attention_norm", "final_norm")


def megatron(version: int, recipe: str = "megatron-gpt2", **names: str) -> Case:
    gpt2 = Transformers("GPT2Model", n_embd=48, n_inner=40, n_layer=2, n_head=6, vocab_size=11, n_positions=9)

    def a(state: dict[str, Tensor]) -> Tensor:
        return megatron_gpt.forward(state, IDS, 6, version, **names)

    def b(state: dict[str, Tensor]) -> Tensor:
        return gpt2.run(state, IDS).last_hidden_state

    facts = {"num_attention_heads": 6, "checkpoint_version": version}
    return Case(recipe, f"checkpoint_version {version}", a, b, gpt2.state, facts, skip=MEGATRON_NORMS)


def codegen() -> Case:
    config = {"n_embd": 48, "n_inner": 40, "n_layer": 2, "n_head": 4, "rotary_dim": 6, "n_positions": 9}
    config |= {"vocab_size": 11, "tie_word_embeddings": False}
    a, b = (Transformers(f"{name}ForCausalLM", **config) for name in ("CodeGen", "GPTJ"))
    return Case("codegen-gptj", "partial rotary", a, b, b.state, {}, "transformer.", "transformer.")


CASES = [
    llama("llama-meta", llamas.meta, "grouped queries"),
    llama("llama-meta", llamas.meta, "Mistral with its own head size", "Mistral", head_dim=12),
    llama("litgpt-llama", llamas.litgpt, "grouped queries", plain=True),
    llama("litgpt-llama", llamas.litgpt, "Qwen2: biases of q, k, v", "Qwen2", plain=True),
    llama("litgpt-llama", llamas.litgpt, "Qwen3: norms of q, k", "Qwen3", head_dim=8, plain=True),
    llama("litgpt-llama-grouped", llamas.litgpt_grouped, "grouped queries"),
    llama("litgpt-llama-grouped", llamas.litgpt_grouped, "Qwen2: biases of q, k, v", "Qwen2"),
    between("litgpt-qkv", "litgpt-llama", llamas.litgpt_grouped, llamas.litgpt),
    between("llama-meta-litgpt", "litgpt-llama", llamas.meta, llamas.litgpt),
    between("llama-meta-litgpt-grouped", "litgpt-llama-grouped", llamas.meta, llamas.litgpt_grouped),
    llama("gpt-fast-llama", llamas.gpt_fast, "grouped queries"),
    llama("torchtune-llama", llamas.torchtune, "grouped queries"),
    llama("torchtune-qwen2", llamas.torchtune_qwen2, "biases of q, k, v", "Qwen2", plain=True),
    neox("litgpt-gpt-neox", old=False),
    neox("litgpt-gpt-neox-grouped", old=True),
    falcon("litgpt-falcon", "7B: one k and v", 1, False, **FALCON_7B),
    falcon("litgpt-falcon", "40B: groups", 2, False, **FALCON_40B),
    falcon("litgpt-falcon", "a k and v for each head", 6, False, **FALCON_MHA),
    falcon("litgpt-falcon-grouped", "7B: one k and v", 1, True, **FALCON_7B),
    falcon("litgpt-falcon-grouped", "40B: groups", 2, True, **FALCON_40B),
    llama("internlm2-llama", llamas.internlm2, "grouped queries"),
    phi3(),
    llama(
        "megatron-core-llama",
        llamas.megatron,
        "norms inside the layers",
        skip=("decoder.layers.{i}.input_layernorm", "pre_mlp"),
    ),
    llama(
        "megatron-core-llama", llamas.megatron_local, "norms beside the layers", skip=("layer_norm_weight",)
    ),
    llama(
        "qwen1-llama",
        llamas.qwen1,
        "Qwen2: biases of q, k, v",
        "Qwen2",
        num_key_value_heads=6,
        root_a="transformer.",
        plain=True,
    ),
    lens("transformer-lens-gpt2", "GPT-2", "transformer.", GPT2, act=lens_model.gelu_new),
    lens(
        "transformer-lens-gpt-neox",
        "Pythia",
        "gpt_neox.",
        PYTHIA,
        ("embed_out",),
        act=gelu,
        rotary=4,
        parallel=True,
    ),
    lens(
        "transformer-lens-llama",
        "grouped queries",
        "model.",
        Transformers("LlamaForCausalLM", **LLAMA),
        ("attn.W_K", "attn.W_V", "attn.b_K", "attn.b_V"),
        rotary=8,
    ),
    lens(
        "transformer-lens-llama",
        "as many heads for k and v",
        "model.",
        Transformers("LlamaForCausalLM", **{**LLAMA, "num_key_value_heads": 6}),
        ("_W_", "_b_"),
        rotary=8,
    ),
    lens(
        "transformer-lens-llama",
        "Qwen2: biases of q, k, v",
        "model.",
        Transformers("Qwen2ForCausalLM", **LLAMA),
        ("attn.W_K", "attn.W_V", "attn.b_K", "attn.b_V"),
        rotary=8,
    ),
    lens(
        "transformer-lens-bloom",
        "BLOOM",
        "transformer.",
        BLOOM,
        heads=4,
        act=lens_model.bloom_gelu,
        with_alibi=True,
    ),
    swin_transformers("swin-openmmlab-transformers", SWIN),
    swin_transformers("swin-openmmlab-transformers-4", Written("SwinForImageClassification", **SWIN_CONFIG)),
    swin("swin-openmmlab", "a classifier", swin_model.OFFICIAL, "head"),
    swin("swin-openmmlab-timm", "a classifier", swin_model.TIMM, "head.fc"),
    dinov2("dinov2-giant", Transformers("Dinov2Model", **DINO_CONFIG)),
    dinov2("dinov2-giant-transformers-4", Written("Dinov2Model", **DINO_CONFIG)),
    *(megatron(version) for version in range(4)),
    megatron(0, "megatron-gpt2-2", trunk="transformer", attn="attention"),
    codegen(),
    llama(
        "chatglm-glm",
        llamas.chatglm,
        "grouped queries",
        "Glm",
        root_a="transformer.",
        head_dim=8,
        pad_token_id=None,
        attention_bias=True,
        plain=True,
    ),
    between("llama-meta-torchtune", "torchtune-llama", llamas.meta, llamas.torchtune, plain=True),
    between("llama-meta-gpt-fast", "gpt-fast-llama", llamas.meta, llamas.gpt_fast, plain=True),
    phi3_litgpt(),
    gemma(),
    llama("litgpt-olmo2", llamas.olmo2, "grouped queries", "Olmo2", plain=True),
    dinov2("dinov2-giant-timm", Transformers("Dinov2Model", **DINO_CONFIG), mlp=("fc1", "fc2")),
    Case(
        "flux-diffusers",
        "two double and two single blocks",
        lambda s: flux.bfl(s, flux.inputs()),
        lambda s: flux.diffusers(s, flux.inputs()),
        lambda: {k: torch.zeros(shape, dtype=torch.float64) for k, shape in flux.shapes().items()},
        {},
    ),
]
