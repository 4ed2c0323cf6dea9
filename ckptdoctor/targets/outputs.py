"""What a model that is given as source puts out with the weights of a file: run in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import TargetError
from ckptdoctor.targets import _process, _wording
from ckptdoctor.targets._text import printable
from ckptdoctor.targets.source import Source, checked_request, parse_source

if TYPE_CHECKING:
    from ckptdoctor.targets._finding import Candidate


def model_outputs(
    model: str, weights: Path, inputs: Any, *, kwargs: Mapping[str, Any] | None = None, timeout: float = 60
) -> Any:
    """The outputs of ``model`` (``model.py:name``) for ``inputs``, with the state dict in ``weights``.

    It is built on the CPU and loads the file strictly, as its user would. The result is that of
    :func:`~ckptdoctor.targets.forward.forward`. Raises :class:`TargetError` with what the model raised.
    """
    import torch

    source = check_source(model)
    with tempfile.TemporaryDirectory(prefix="ckptdoctor-") as folder:
        given, made = Path(folder) / "inputs.pth", Path(folder) / "outputs.pth"
        torch.save(inputs, given)
        request = checked_request(source, kwargs, timeout)
        files = {"weights": str(Path(weights).resolve()), "inputs": str(given), "outputs": str(made)}
        outcome = _process.run({**request, "probe": files}, timeout)
        if not any(e["event"] == "saved" for e in outcome.events):
            raise TargetError(_wording.failure(source, outcome, timeout))
        return torch.load(made, map_location="cpu", weights_only=True)


def check_source(model: str) -> Source:
    """What can be built. Raises :class:`TargetError` for a tree or a reference checkpoint."""
    source = parse_source(model)
    if source is None or not source.name:
        raise TargetError(
            f"`{printable(model)}` cannot be built, so no probe can run; give the model as model.py:name"
        )
    return source


def save_outputs(candidate: Candidate, request: Mapping[str, Any]) -> None:
    """In the worker: build, load, run, save. Raises what the user's code does."""
    import torch

    from ckptdoctor.targets import _building
    from ckptdoctor.targets.forward import forward
    from ckptdoctor.targets.values import real_model

    files = request["probe"]
    model = real_model(candidate, request)
    model.load_state_dict(load_plain(Path(files["weights"])), strict=True)
    inputs = torch.load(files["inputs"], map_location="cpu", weights_only=True)
    with torch.device("cpu"), _building._NoAccelerator():
        torch.save(forward(model, inputs), files["outputs"])


def load_plain(path: Path) -> Mapping[str, Any]:
    """A file's state dict as plain torch or safetensors read it, memory-mapped."""
    import torch

    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        found: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return found
    from safetensors.torch import load_file

    tensors: Mapping[str, Any] = load_file(path)
    return tensors
