"""The initial values of a model that is given as source: built for real, in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import TargetError
from ckptdoctor.targets import _process, _wording
from ckptdoctor.targets._text import listing, printable
from ckptdoctor.targets.source import checked_request, parse_source

if TYPE_CHECKING:
    import torch

    from ckptdoctor.targets._finding import Candidate


def initial_values(
    model: str, keys: Iterable[str], *, kwargs: Mapping[str, Any] | None = None, timeout: float = 60
) -> dict[str, Any]:
    """What a freshly built ``model`` (``model.py:name``, ``package.module:name``) holds under ``keys``.

    It is built on the CPU with its own random initialisation, seeded. Tensors, or what
    ``get_extra_state`` returns. Raises :class:`TargetError`.
    """
    source = parse_source(model)
    if source is None or not source.name:
        raise TargetError(
            f"`{printable(model)}` cannot be built, so it has no initial values; give the model as "
            "model.py:name"
        )
    with tempfile.TemporaryDirectory(prefix="ckptdoctor-") as folder:
        path = Path(folder) / "values.pth"
        request = checked_request(source, kwargs, timeout)
        outcome = _process.run({**request, "values": str(path), "keys": list(keys)}, timeout)
        if not any(e["event"] == "saved" for e in outcome.events):
            raise TargetError(_wording.failure(source, outcome, timeout))
        return _read(path, model)


def _read(path: Path, model: str) -> dict[str, Any]:
    import pickle

    import torch

    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TargetError(
            f"the extra state of `{printable(model)}` is no plain data, so a file cannot hold it safely: "
            f"{printable(str(error).splitlines()[0])}"
        ) from error
    return values


def save_values(candidate: Candidate, request: Mapping[str, Any]) -> None:
    """In the worker: build the candidate and write the values asked for. Raises what the user's code does."""
    import torch

    state = real_model(candidate, request).state_dict()
    missing = [key for key in request["keys"] if key not in state]
    if missing:
        raise TargetError(f"the model has no {listing(missing)}")
    torch.save({key: _own(state[key]) for key in request["keys"]}, request["values"])


def real_model(candidate: Candidate, request: Mapping[str, Any]) -> torch.nn.Module:
    """In the worker: the candidate on the CPU, with its own seeded initialisation."""
    import torch

    from ckptdoctor.targets import _building

    torch.manual_seed(_building.SEED)  # again: importing may have drawn
    if isinstance(candidate.thing, torch.nn.Module):
        return candidate.thing
    with torch.device("cpu"), _building._NoAccelerator():
        made: torch.nn.Module = candidate.thing(**request["kwargs"])
        return made


def _own(value: Any) -> Any:
    import torch

    return value.detach().clone() if isinstance(value, torch.Tensor) else value
