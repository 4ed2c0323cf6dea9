"""Forward parity: the loaded model gives, for known inputs, the outputs that are expected.

The replay of :mod:`ckptdoctor.verify` proves that the plan was carried out; a probe is evidence that the plan
was right, also where no shape shows it (rotary layouts, the order of fused parts, eps).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.errors import ApplyError, ProbeError, ReadError, TargetError
from ckptdoctor.keys import printable
from ckptdoctor.ops.base import show
from ckptdoctor.receipt import ProbeResult

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ckptdoctor.targets import Target

# Of the least exact dtype among outputs, expected values and parameters: rtol, and atol as a share of the
# largest expected value of an output. As for torch.allclose, |output - expected| <= atol + rtol * |expected|.
# Some ten times what other kernels and threads do to a deep network, and below what a wrong layout does.
TOLERANCES = {
    "float64": (1e-7, 1e-9),
    "float32": (1e-4, 1e-5),
    "float16": (1e-2, 5e-3),
    "bfloat16": (4e-2, 2e-2),
}
COARSEST = (1e-1, 5e-2)  # 8-bit floats
_MOST = 4  # differing outputs that a message names
_HINT = "a layout that no shape shows is wrong, or the model has other settings (heads, eps, activation)"


@dataclass(frozen=True)
class Probe:
    """Known ``inputs`` (a tensor, a tuple of arguments or a dict of keyword arguments) and ``expected``.

    ``expected`` is a tensor or nested like the model's output; of a mapping only the named outputs are
    compared. ``rtol`` and ``atol`` (absolute) replace what the dtype and the size of the outputs give.
    """

    inputs: Any
    expected: Any
    rtol: float | None = None
    atol: float | None = None


def read_probe(given: Any) -> Probe:
    """A probe from ``(inputs, expected)``, a dict with these names, or the path of a file that holds one.

    The file is one that ``torch.load(file, weights_only=True)`` reads. Raises :class:`ReadError` (file) or
    :class:`ApplyError` when it is no probe, or one that any output would pass.
    """
    if isinstance(given, Probe):
        return _useful(given, "the probe")
    if isinstance(given, str | os.PathLike):
        shown = printable(os.fspath(given))
        return _useful(_from_mapping(_loaded(given, shown), shown), shown)
    if isinstance(given, Mapping):
        return _useful(_from_mapping(given, "the probe"), "the probe")
    if isinstance(given, tuple) and len(given) == 2:
        return _useful(Probe(*given), "the probe")
    raise ApplyError(
        f"a probe is (inputs, expected), a dict with these names, or a file; got {type(given).__name__}"
    )


def _loaded(path: str | os.PathLike[str], shown: str) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ReadError(f"{shown} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        first = printable(str(error).partition("\n")[0])[:200]
        raise ReadError(
            f"{shown} is no probe ({type(error).__name__}: {first}); save one with "
            'torch.save({"inputs": x, "expected": y}, "probe.pt")'
        ) from None


def _from_mapping(found: Any, shown: str) -> Probe:
    names = {"inputs", "expected", "rtol", "atol"}
    if not isinstance(found, Mapping) or not {"inputs", "expected"} <= set(found) <= names:
        has = (
            ", ".join(printable(str(k)) for k in found)
            if isinstance(found, Mapping)
            else type(found).__name__
        )
        raise ReadError(
            f"{shown} is no probe: expected a dict with `inputs` and `expected` (and maybe `rtol`, `atol`), "
            f"found {has[:200] or 'an empty one'}"
        )
    return Probe(**found)


def _useful(probe: Probe, shown: str) -> Probe:
    """Refuse a probe that proves nothing."""
    for name, value in (("rtol", probe.rtol), ("atol", probe.atol)):
        if value is not None and not (isinstance(value, int | float) and 0 <= value < float("inf")):
            raise ApplyError(f"{shown}: {name} is {value!r}; expected a number of 0 or more")
    if not any(due.numel() for _, _, due in _pairs(probe.expected, None)):
        raise ApplyError(f"{shown} compares nothing: `expected` holds no values")
    return probe


def _pairs(expected: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Tensor]]:
    """For every expected tensor or number: its path, the output in its place (None: none), and itself."""
    import torch

    if isinstance(expected, Mapping):
        for key, item in expected.items():
            inner = found.get(str(key)) if isinstance(found, Mapping) else None
            yield from _pairs(item, inner, f"{path}.{key}" if path else str(key))
    elif isinstance(expected, list | tuple):
        same = isinstance(found, tuple) and len(found) == len(expected)
        for i, item in enumerate(expected):
            yield from _pairs(item, found[i] if same else None, f"{path}[{i}]")
    elif isinstance(expected, torch.Tensor):
        yield path, found, expected.detach().cpu()
    elif isinstance(expected, bool | int | float):
        yield path, found, torch.as_tensor(expected)
    elif expected is not None:
        raise ApplyError(f"the probe expects a {type(expected).__name__} at `{path}`, which is no tensor")


def probe_model(probe: Probe, model: nn.Module) -> ProbeResult:
    """Run a live model on the probe. Raises :class:`ProbeError`, also when the model cannot run on it."""
    from ckptdoctor.targets.forward import forward

    try:
        outputs = forward(model, probe.inputs)
    except Exception as error:
        what = f"{type(error).__name__}: {printable(str(error))[:500]}"
        raise ProbeError(
            f"the model cannot run on the probe's inputs; the model is as it was before. {what}"
        ) from error
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    return compare(probe, outputs, dtypes, "the model is as it was before")


def live_probe(given: Any, model: nn.Module) -> Callable[[], ProbeResult] | None:
    """What runs a loaded model on a probe; the probe is read now, before anything is loaded."""
    if given is None:
        return None
    probe = read_probe(given)
    return lambda: probe_model(probe, model)


def file_probe(
    given: Any, target: Target, kwargs: Mapping[str, Any] | None, timeout: float
) -> Callable[[Path], ProbeResult] | None:
    """What builds the target's source in a process of its own, loads a new file and runs it on a probe."""
    if given is None:
        return None
    from ckptdoctor.targets.outputs import check_source, model_outputs

    probe = read_probe(given)
    check_source(target.label)
    dtypes = {spec.dtype for spec in target.tree.specs.values()}

    def run(written: Path) -> ProbeResult:
        try:
            outputs = model_outputs(target.label, written, probe.inputs, kwargs=kwargs, timeout=timeout)
        except TargetError as error:
            raise ProbeError(f"the model cannot run on the probe; no file was written. {error}") from error
        return compare(probe, outputs, dtypes, "no file was written")

    return run


def compare(probe: Probe, outputs: Any, dtypes: Iterable[str], state: str) -> ProbeResult:
    """Whether ``outputs`` are those that the probe expects, within its tolerance.

    ``dtypes`` are those of the parameters; ``state`` says what became of the target when they are not.
    Raises :class:`ProbeError` with the largest difference and its place.
    """
    import torch

    pairs = list(_pairs(probe.expected, outputs))
    rtol, share = _tolerance(probe, pairs, dtypes)
    atols = [share * _largest(due) if probe.atol is None else float(probe.atol) for _, _, due in pairs]
    atol = max(atols)
    blank = zip(pairs, atols, strict=True)
    if all(_differences(torch.zeros_like(due), due, rtol, a)[1] == 0 for (_, _, due), a in blank):
        raise ApplyError(
            f"the probe proves nothing: zeros would pass within rtol={rtol:g} and atol={atol:g}. Take inputs "
            "with larger outputs, or give a smaller atol"
        )
    judged = [_judged(*pair, rtol, a) for pair, a in zip(pairs, atols, strict=True)]
    if problems := [words for words, _ in judged if words]:
        more = [f"... and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
        first = f"the outputs are not those of the probe (rtol={rtol:g}, atol={atol:g}); {state}:"
        raise ProbeError("\n  ".join([first, *problems[:_MOST], *more, _HINT]))
    values = sum(due.numel() for _, _, due in pairs)
    return ProbeResult(len(pairs), values, rtol, atol, max(largest for _, largest in judged))


def _tolerance(
    probe: Probe, pairs: Iterable[tuple[str, Any, Tensor]], dtypes: Iterable[str]
) -> tuple[float, float]:
    names = {str(t.dtype).removeprefix("torch.") for _, *both in pairs for t in both if _is_float(t)}
    names |= {name for name in dtypes if name in TOLERANCES or name.startswith("float8")}
    known = [TOLERANCES.get(name, COARSEST) for name in names] or [TOLERANCES["float32"]]
    rtol, share = max(known)
    return rtol if probe.rtol is None else float(probe.rtol), share


def _largest(due: Tensor) -> float:
    """The largest finite absolute value; 0 when there is none."""
    import torch

    size = due.to(torch.complex128 if due.is_complex() else torch.float64).abs()
    size = size[torch.isfinite(size)]
    return float(size.max()) if size.numel() else 0.0


def _is_float(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _judged(path: str, found: Any, due: Tensor, rtol: float, atol: float) -> tuple[str, float]:
    """What is wrong with one output ("": nothing), and its largest difference."""
    import torch

    name = f"`{printable(path)}`" if path else "the output"
    if isinstance(found, bool | int | float):
        found = torch.as_tensor(found)
    if not isinstance(found, torch.Tensor):
        return f"{name} should be a tensor {show(tuple(due.shape))}, the model gives {_words(found)}", 0.0
    if found.shape != due.shape:
        return f"{name} is {show(tuple(found.shape))}, expected {show(tuple(due.shape))}", 0.0
    difference, beyond = _differences(found, due, rtol, atol)
    largest = float(difference.max()) if difference.numel() else 0.0
    if not beyond:
        return "", largest
    at = int(difference.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(at), found.shape)]
    values = f"{found.flatten()[at].item():.6g} where {due.flatten()[at].item():.6g} is expected"
    where = f"at {place} " if place else ""
    return (
        f"{name}: {beyond:,} of {due.numel():,} values differ, most by {largest:.6g} {where}({values})",
        largest,
    )


def _differences(found: Tensor, due: Tensor, rtol: float, atol: float) -> tuple[Tensor, int]:
    """Absolute differences, infinite where only one is NaN or infinite; and how many are beyond tolerance.

    Whole numbers and truth values have to be equal.
    """
    import torch

    exact = not (
        found.is_floating_point() or found.is_complex() or due.is_floating_point() or due.is_complex()
    )
    wide = torch.complex128 if found.is_complex() or due.is_complex() else torch.float64
    a, b = found.to(wide), due.to(wide)
    same = (found == due) | (torch.isnan(a) & torch.isnan(b))
    odd = ~same & ~(torch.isfinite(a) & torch.isfinite(b))
    difference = torch.where(same, 0.0, torch.where(odd, float("inf"), (a - b).abs()))
    allowed = torch.zeros_like(difference) if exact else atol + rtol * b.abs()
    return difference, int((odd | (difference > allowed) & ~same).sum())


def _words(value: Any) -> str:
    """What an output is, in words."""
    if value is None:
        return "nothing there"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(printable, value))}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else printable(str(value))
