"""The crossings that are proved: two forward passes on state dicts, and the facts that a config gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.recipes.applier import convert
from tests.recipes.models import llamas

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 0]])
Forward = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    """``a`` and ``b`` are forward passes on the state dicts of the two sides; ``state`` is one of side b.

    ``plain``: the recipe only renames, joins and takes apart, so nothing is left to leave out.
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
    roots: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roots", {"a": self.root_a, "b": self.root_b})

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
        model = self.model
        model.load_state_dict({k: state[k] for k in state}, strict=True)
        return model(IDS).logits


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
    plain = more.pop("plain", False)
    b = Transformers(f"{cls}ForCausalLM", **{**LLAMA, **more})
    return Case(recipe, title, lambda s: a(s, IDS, **DIMS), b, b.state, HEADS, root_b="model.", plain=plain)


def between(recipe: str, through: str, a: Callable[..., Tensor], b: Callable[..., Tensor]) -> Case:
    """Neither side is transformers': the first state dict of b comes through another recipe."""
    llama = Transformers("LlamaForCausalLM", **LLAMA)

    def state() -> dict[str, Tensor]:
        return convert(through, "b", llama.state(), HEADS, {"a": "", "b": "model."})

    return Case(
        recipe, "grouped queries", lambda s: a(s, IDS, **DIMS), lambda s: b(s, IDS, **DIMS), state, HEADS
    )


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
]
