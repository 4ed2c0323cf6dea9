"""Putting carried state into a live optimizer, and proving that it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import VerifyError
from ckptdoctor.keys import printable
from ckptdoctor.training.carry import Carry
from ckptdoctor.training.findings import some
from ckptdoctor.training.groups import Hyper
from ckptdoctor.training.live import params_of
from ckptdoctor.training.naming import Sides
from ckptdoctor.training.staging import Stager, State

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OptimizerWork:
    """One optimizer and everything that was decided for it. ``staged`` is a state dict in its own order."""

    name: str
    optimizer: torch.optim.Optimizer
    carry: Carry
    hyper: Hyper
    sides: Sides

    def stage(self) -> dict[str, Any]:
        """Read and move everything; nothing is changed. Raises what :class:`Stager` raises."""
        with Stager(self.carry, self.sides) as stager:
            return {"state": dict(self._states(stager)), "param_groups": self._groups(stager)}

    def _states(self, stager: Stager) -> Iterator[tuple[int, State]]:
        params = params_of(self.optimizer)
        carried = [c for group in self.carry.params for c in group]
        saved = self.carry.saved
        if saved.flat and not self.carry.dropped:
            if saved.params and saved.params[0].slots:
                yield 0, stager.flat(list(zip(carried, params, strict=True)))
            return
        for i, (one, param) in enumerate(zip(carried, params, strict=True)):
            if one.slots:
                yield i, stager.state(one, param)

    def _groups(self, stager: Stager) -> list[dict[str, Any]]:
        groups, position = [], 0
        for own, values in zip(self.optimizer.param_groups, self.hyper.values, strict=True):
            group = {k: v for k, v in own.items() if k != "params"}
            group |= {k: _like(own.get(k), stager.tensors(v)) for k, v in values.items()}
            group["params"] = list(range(position, position + len(own["params"])))
            position += len(own["params"])
            groups.append(group)
        return groups

    def load(self, staged: Mapping[str, Any]) -> None:
        """Through the optimizer's own ``load_state_dict``, so that its hooks run; then exactly as staged."""
        self.optimizer.load_state_dict(dict(staged))
        params = params_of(self.optimizer)
        for index, state in staged["state"].items():
            own = self.optimizer.state[params[index]]
            for slot, value in state.items():
                if slot != "step":  # its device follows the flags, see torch.optim.Optimizer
                    own[slot] = _at_home(value, own.get(slot))

    def verify(self) -> None:
        """Read the file again and compare. Raises :class:`VerifyError`."""
        params = params_of(self.optimizer)
        left = {i for i, p in enumerate(params) if self.optimizer.state.get(p)}
        with Stager(self.carry, self.sides) as stager:
            for index, want in self._states(stager):
                left.discard(index)
                have = self.optimizer.state.get(params[index], {})
                wrong = sorted(set(want) ^ set(have)) or [s for s in want if not _same(want[s], have[s])]
                if wrong:
                    raise self._differs(index, wrong)
        if left:
            raise self._differs(min(left), list(self.optimizer.state[params[min(left)]]))

    def _differs(self, index: int, wrong: list[str]) -> VerifyError:
        key = [c for group in self.carry.params for c in group][index].key
        return VerifyError(
            f"after loading, {some(map(str, wrong))} of `{printable(key)}` in the optimizer is not "
            "what the file has; everything is as it was before"
        )


def _like(own: Any, value: Any) -> Any:
    """A number of the file in the type that the optimizer uses (betas: a tuple; a list in some files)."""
    if isinstance(own, tuple) and isinstance(value, list):
        return tuple(value)
    return value


def _at_home(value: Any, loaded: Any) -> Any:
    """The staged tensor on the device where the optimizer put it; lists of them likewise."""
    import torch

    if isinstance(value, torch.Tensor) and isinstance(loaded, torch.Tensor):
        return value.to(loaded.device)
    if isinstance(value, list) and isinstance(loaded, list) and len(value) == len(loaded):
        return [_at_home(v, w) for v, w in zip(value, loaded, strict=True)]
    return value


def _same(want: Any, have: Any) -> bool:
    import torch

    from ckptdoctor.ops.bits import same_bits

    if isinstance(want, torch.Tensor):
        if not isinstance(have, torch.Tensor):
            have = torch.as_tensor(have)
        if want.dim() == 0 and want.dtype != have.dtype:  # a step count as the optimizer's flags want it
            return bool(want.item() == have.item())
        return (
            want.shape == have.shape
            and want.dtype == have.dtype
            and same_bits(want, have.detach().to(want.device))
        )
    if isinstance(have, torch.Tensor) and isinstance(want, int | float):  # torch makes old steps tensors
        return bool(have.item() == want)
    if isinstance(want, list | tuple):
        return len(want) == len(have) and all(_same(a, b) for a, b in zip(want, have, strict=True))
    return bool(want == have)
