"""What a proof is made of: two forward passes on state dicts, and the facts that a config gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.recipes.applier import convert

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
