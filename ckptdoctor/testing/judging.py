"""Load a drawn file into a fresh model and compare with the truth, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptdoctor.testing.files import write
from ckptdoctor.testing.history import Cast, History, Truth
from ckptdoctor.testing.recipes import Network, forward

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ckptdoctor.diagnosis import Diagnosis


_KINDS = {"UndecidedError": "asked", "IncompatibleError": "refused"}


@dataclass(frozen=True)
class Outcome:
    """What a load did: ``kind`` is loaded, asked, refused (another architecture) or failed (any other error).

    ``problems`` is empty unless something was silently wrong: a value differs from the truth, a claim
    called safe is false, a refused load touched the model, a question leaves the truth out.
    """

    kind: str
    problems: tuple[str, ...] = ()
    words: str = ""


def judge(network: Network, history: History, folder: Path) -> Outcome:
    """Write the file of a drawn pair and load it into a new network with other values."""
    trained = network.build(seed=1)
    path, truth = write(history, trained.state_dict(), folder)
    rounded = any(isinstance(step, Cast) for step in history.steps)
    expected = None if rounded else forward(trained)
    return judge_model(lambda: network.build(seed=2), path, truth, expected=expected, run=forward)


def judge_model(
    make: Callable[[], nn.Module],
    path: Path,
    truth: Truth,
    *,
    decisions: Sequence[str] = (),
    expected: Tensor | None = None,
    run: Callable[[nn.Module], Tensor] | None = None,
) -> Outcome:
    """Load ``path`` into ``make()``, and compare with the truth; for models of your own.

    ``run`` computes an output and ``expected`` is what it has to be when every value arrived unrounded.
    """
    import ckptdoctor
    from ckptdoctor.errors import CkptDoctorError

    model = make()
    before = _picture(model)
    try:
        ckptdoctor.auto_load(model, path, decisions=decisions)
    except CkptDoctorError as error:
        kind = _KINDS.get(type(error).__name__, "failed")
        problems = (
            [] if _picture(model) == before else ["the load was refused and the model is not as before"]
        )
        if kind != "failed":
            problems += false_claims(
                ckptdoctor.diagnose(ckptdoctor.snapshot(model), path, decisions=decisions), truth
            )
        return Outcome(kind, tuple(problems), str(error))
    problems = list(_differences(model, truth))
    if not problems and expected is not None and run is not None and _exact(truth, model):
        got = run(model)
        if _bits(got) != _bits(expected):
            problems.append("every tensor is right and the forward pass is not")
    return Outcome("loaded", tuple(problems))


def _picture(model: nn.Module) -> dict[str, object]:
    state = model.state_dict()
    return {
        k: (v.data_ptr(), v.dtype, v.shape, _bits(v)) if hasattr(v, "dtype") else v for k, v in state.items()
    }


def _bits(tensor: Tensor) -> bytes:
    import torch

    return (
        tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )


def _exact(truth: Truth, model: nn.Module) -> bool:
    state = model.state_dict()
    if truth.near:
        return False
    return len(truth.values) == len(state) and all(v.dtype == state[k].dtype for k, v in truth.values.items())


def _close(want: Tensor, value: Tensor) -> bool:
    """Whether a computed value is right but for rounding in the coarser of the two dtypes."""
    import torch

    bound = 8 * max(torch.finfo(t.dtype).eps for t in (want, value))
    return want.shape == value.shape and torch.allclose(want.double(), value.double(), rtol=bound, atol=bound)


def _differences(model: nn.Module, truth: Truth) -> Iterator[str]:
    for key, value in model.state_dict().items():
        want = truth.values.get(key)
        if not hasattr(value, "dtype"):
            continue
        if want is None and key.endswith("num_batches_tracked"):
            continue  # counts for nothing unless momentum is None; documented as kept
        if want is None:
            yield f"{key!r}: nothing in the file fills it, and nobody was asked"
        elif _bits(want.to(value.dtype)) != _bits(value) and not (key in truth.near and _close(want, value)):
            yield f"{key!r} differs from what was saved"
    if truth.ambiguous:
        yield "two state dicts fit, and nobody was asked which is meant"


def false_claims(found: Diagnosis, truth: Truth) -> Iterator[str]:
    """What a diagnosis calls safe although it is not true, and questions without the true answer."""
    if found.alignment is None or found.state_dict is None or found.verdict == "incompatible":
        return
    state_dict = found.archive[found.state_dict]
    read = _reader(found)
    unused = found.alignment.unused
    for key, match in found.alignment.matches.items():
        want, sources = truth.values.get(key), truth.sources.get(key, ())
        if match.status == "safe":
            if want is None:
                yield f"{key!r}: claimed safe from {match.sources}, but nothing in the file fills it"
            elif set(match.sources) != set(sources) and not _equal(read, match, want, near=key in truth.near):
                yield f"{key!r}: claimed safe from {match.sources}, it comes from {sources}"
        elif match.status == "kept" and set(sources) & set(state_dict.tree.specs):
            yield f"{key!r}: kept at its initial value, but it comes from {sources}"
        elif match.status == "undecided" and sources and not _offered(match, sources, unused, read, want):
            yield f"{key!r}: undecided among {[c.sources for c in match.choices]}, it comes from {sources}"
        elif match.status == "missing" and any(s in unused and unused[s].decided for s in sources):
            yield f"{key!r}: called missing, and {sources} is dropped without a question"


def _reader(found: Diagnosis) -> Callable[[str], Tensor]:
    from ckptdoctor.formats.tensors import TensorReader

    assert found.state_dict is not None
    return TensorReader(found.archive, found.archive[found.state_dict])


def _equal(read: Callable[[str], Tensor], match: Any, want: Tensor, *, near: bool) -> bool:
    """Whether another source holds the same values (tied, repeated, or computed)."""
    from ckptdoctor.ops import parse_chain

    made = parse_chain(match.ops).run([read(s) for s in match.sources])
    if near:
        return _close(want, made)
    return made.shape == want.shape and _bits(made.to(want.dtype)) == _bits(want)


def _offered(
    match: Any,
    sources: Sequence[str],
    unused: Mapping[str, Any],
    read: Callable[[str], Tensor],
    want: Tensor | None,
) -> bool:
    """The true sources are among the choices, or are still waiting for an answer."""
    if any(set(c.sources) == set(sources) for c in match.choices):
        return True
    return all(s in unused and not unused[s].decided for s in sources)
