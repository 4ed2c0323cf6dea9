"""Values as they can be saved: tensors on the CPU, without hidden memory, and plain data around them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import ApplyError
from ckptdoctor.keys import printable

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = (str, int, float, bool, complex, bytes, type(None))


class Copies:
    """Makes private copies; what is one tensor stays one. With ``always`` of everything."""

    def __init__(self, always: bool = False) -> None:
        self.always = always
        self._made: dict[tuple[Any, ...], Tensor] = {}
        self._kept: list[Any] = []

    def tensor(self, tensor: Tensor, path: str) -> Tensor:
        """On the CPU, contiguous, in a storage of its own. Raises :class:`ApplyError`."""
        import torch

        if tensor.is_meta:
            raise ApplyError(f"`{printable(path)}` is on the meta device: there are no values to save")
        if type(tensor).__name__ in ("DTensor", "ShardedTensor"):
            raise ApplyError(
                f"`{printable(path)}` is one shard of a distributed tensor; gather it first: "
                "torch.distributed.checkpoint.state_dict.get_state_dict with full_state_dict=True"
            )
        plain = tensor.detach()
        if plain.layout != torch.strided or plain.is_quantized:
            return plain.cpu().clone() if self.always else plain.cpu()
        key = (_address(plain), tuple(plain.shape), plain.stride(), plain.dtype)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._copy(plain)
            self._kept.append(tensor)
        return found

    def _copy(self, plain: Tensor) -> Tensor:
        import torch

        tight = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
        dense = plain.is_contiguous() and not plain.is_conj() and not plain.is_neg()
        if plain.device.type == "cpu" and tight and dense and not self.always and type(plain) is torch.Tensor:
            return plain
        out = torch.empty(plain.shape, dtype=plain.dtype)
        return out.copy_(plain)

    def value(self, value: Any, path: str) -> Any:
        """Any plain value. Raises :class:`ApplyError` naming what plain torch could not load."""
        import torch

        if isinstance(value, torch.Tensor):
            return self.tensor(value, path)
        if type(value) in PLAIN:
            return value
        if type(value) is Counter:
            return Counter(value)
        if isinstance(value, Mapping):
            made = {self._key(k, path): self.value(v, f"{path}.{k}") for k, v in value.items()}
            return OrderedDict(made) if isinstance(value, OrderedDict) else made
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            items = [self.value(v, f"{path}[{i}]") for i, v in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, torch.Size | torch.dtype | torch.device):
            return value
        return self._foreign(value, path)

    def _key(self, key: Any, path: str) -> Any:
        if type(key) in PLAIN or isinstance(key, tuple):
            return key
        raise ApplyError(f"{printable(path)} has a {type(key).__name__} as key; use texts or numbers")

    def _foreign(self, value: Any, path: str) -> Any:
        import numpy
        import torch

        if isinstance(value, numpy.generic):
            return value.item()
        if isinstance(value, numpy.ndarray) and value.dtype.kind in "fiubc":
            return torch.from_numpy(value.copy())
        words = {"Namespace": "vars(args)", "PosixPath": "str(path)", "WindowsPath": "str(path)"}
        name = type(value).__name__
        advice = words.get(name, "numbers, texts, lists, dicts and tensors")
        raise ApplyError(
            f"{printable(path)} is a {printable(f'{type(value).__module__}.{name}')}, which "
            f"torch.load(weights_only=True) refuses; save {advice} in its place"
        )


def _address(tensor: Tensor) -> tuple[Any, ...]:
    # An empty tensor has no memory: it is nobody's twin.
    if not tensor.numel():
        return (id(tensor),)
    return (str(tensor.device), tensor.untyped_storage().data_ptr(), tensor.storage_offset())
