"""Buffers that a model computes for itself, compared where the checkpoint holds them as well.

Such a buffer (``inv_freq``, ``position_ids``, ``relative_position_index``, a causal mask ...) is dropped from
the file, because the model keeps none or makes its own. Its values follow from the configuration: another
``inv_freq`` means another ``rope_theta``, and weights that were trained with one are wrong with the other,
although every key and shape agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ckptdoctor.align.names import table
from ckptdoctor.errors import VerifyError
from ckptdoctor.ops.base import show
from ckptdoctor.ops.bits import dense
from ckptdoctor.plan.fills import Fill
from ckptdoctor.receipt import listing, plural
from ckptdoctor.verify.replay import quoted

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ckptdoctor.trees import ParamTree

ACCEPT = "derived"  # the word of --accept

# What is no function of a configuration: "very negative" is written in many ways, versions are counted.
CONSTANTS = frozenset({"masked_bias", "version", "_float_tensor", "_dummy_tensor", "num_batches_tracked"})
# May be longer on one side; the part that both have is compared. Others of another shape say nothing.
GROWING = frozenset(
    {
        "inv_freq",
        "original_inv_freq",
        "position_ids",
        "cos_cached",
        "sin_cached",
        "freqs_cis",
        "bias",
        "causal_mask",
    }
)
_ROTARY = ("inv_freq", "original_inv_freq", "freqs", "freqs_cis", "cos_cached", "sin_cached")
_MEANS = {
    **dict.fromkeys(_ROTARY, "another rope_theta, rope scaling or head size than it was trained with"),
    "relative_position_index": "another window size or order of positions than it was trained with",
    "relative_coords_table": "another window size than it was trained with",
}


def check_derived(
    fills: Mapping[str, Fill],
    unused: Collection[str],
    reader: Callable[[str], Tensor],
    model: nn.Module,
    accept: Collection[str] = (),
) -> tuple[str, ...]:
    """Compare what the checkpoint holds and the model computes; returns notes for the receipt.

    ``unused`` are the checkpoint's keys that fill nothing. Raises :class:`VerifyError` naming the key, both
    values and ``--accept derived``, unless that is in ``accept``.
    """
    if not unused:
        return ()
    own = {
        k: b
        for k, b in model.named_buffers(remove_duplicate=False)
        if not b.is_meta and _is_own(fills.get(k))
    }
    equal, problems = [], []
    for key, homes in counterparts(fills, unused, own).items():
        theirs = dense(reader(key).detach()).cpu()
        found = [_difference(key, theirs, home, own[home].detach().cpu()) for home in homes]
        if "" in found:
            equal.append(key)
        else:
            problems += [words for words in found[:1] if words is not None]
    notes = [f"{plural(len(equal), 'derived buffer')} of the file as the model computes"] if equal else []
    if problems and ACCEPT not in accept:
        raise VerifyError(_refusal(problems))
    notes += [f"accepted: {words}" for words in problems[:1]]
    return tuple(notes)


def not_compared(fills: Mapping[str, Fill], unused: Collection[str], target: ParamTree) -> tuple[str, ...]:
    """For a file, where there is no model to ask: what was dropped without a look at its values."""
    if not unused:
        return ()
    own = [*target.transient, *(k for k in target.specs if _is_own(fills.get(k)))]
    found = list(counterparts(fills, unused, own))
    if not found:
        return ()
    were = "was" if len(found) == 1 else "were"
    return (
        f"{listing(found, 2)} of the checkpoint {were} not compared with what the model computes; "
        "auto_load() does, and a probe would show it",
    )


def _is_own(fill: Fill | None) -> bool:
    """Whether the model has this value of its own: not in its state dict, or kept as it was."""
    return fill is None or fill.kind == "keep"


def counterparts(
    fills: Mapping[str, Fill], unused: Collection[str], own: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """For each dropped key the model's buffers that should hold the same: one, or any of those alike."""
    if not unused or not own:
        return {}
    homes, alike = _homes(fills), table()["derived"]["alike"]
    found = {}
    for key in unused:
        leaf = key.rpartition(".")[2]
        if leaf in CONSTANTS:
            continue
        same = next((name for name in _moved(key, homes) if name in own), None)
        copies = [name for name in own if name.rpartition(".")[2] == leaf] if leaf in alike else []
        if same is not None or copies:
            found[key] = (same,) if same is not None else tuple(copies)
    return found


def _homes(fills: Mapping[str, Fill]) -> dict[str, str]:
    """Module of the checkpoint -> the model's module that it fills, where that is one."""
    found: dict[str, set[str]] = {}
    for fill in fills.values():
        if fill.kind == "load" and len(fill.sources) == 1:
            theirs, mine = fill.sources[0].split("."), fill.target.split(".")
            while theirs and mine and theirs[-1] == mine[-1]:
                theirs.pop()
                mine.pop()
                found.setdefault(".".join(theirs), set()).add(".".join(mine))
    return {theirs: next(iter(mine)) for theirs, mine in found.items() if len(mine) == 1}


def _moved(key: str, homes: Mapping[str, str]) -> Iterator[str]:
    """The names that ``key`` has in the model, by its nearest module first."""
    parts = key.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        home = homes.get(".".join(parts[:cut]))
        if home is not None:
            yield ".".join([home, *parts[cut:]]) if home else ".".join(parts[cut:])


def _difference(key: str, theirs: Tensor, home: str, mine: Tensor) -> str | None:
    """What differs, in words; "" when nothing does, None when shapes leave nothing to compare."""
    import torch

    leaf = key.rpartition(".")[2]
    if theirs.shape != mine.shape:
        if leaf not in GROWING or theirs.ndim != mine.ndim:
            return None
        part = [slice(0, min(a, b)) for a, b in zip(theirs.shape, mine.shape, strict=True)]
        theirs, mine = theirs[tuple(part)], mine[tuple(part)]
    wide = torch.complex128 if theirs.is_complex() or mine.is_complex() else torch.float64
    rtol, atol = _tolerance(leaf, theirs, mine)
    a, b = theirs.to(wide), mine.to(wide)
    other = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    count = int(other.sum())
    if not count:
        return ""
    ratio = torch.where(other, (a - b).abs() / (a.abs() + b.abs()), 0.0).nan_to_num(posinf=1.0, nan=1.0)
    at = int(ratio.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(at), a.shape)]
    values = f"{_value(theirs, at)} in the checkpoint, {_value(mine, at)} in the model's {quoted(home)}"
    why = f": {_MEANS[leaf]}" if leaf in _MEANS else ""
    return (
        f"{quoted(key)} {show(tuple(a.shape))}: {count:,} of {a.numel():,} differ, at {place} {values}{why}"
    )


def _value(tensor: Tensor, at: int) -> str:
    value = tensor.flatten()[at].item()
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _tolerance(leaf: str, *tensors: Tensor) -> tuple[float, float]:
    """A few units in the last place of the less exact side; waves also need them around zero."""
    import torch

    kinds = [torch.finfo(t.dtype) for t in tensors if t.is_floating_point() or t.is_complex()]
    if not kinds:
        return 0.0, 0.0
    eps = max(kind.eps for kind in kinds)
    wave = leaf.startswith(("cos", "sin")) or leaf == "freqs_cis"
    return 8 * eps, 8 * eps if wave else max(kind.smallest_normal for kind in kinds)


def _refusal(problems: Sequence[str]) -> str:
    more = [f"... and {len(problems) - 3} more"] if len(problems) > 3 else []
    return "\n  ".join(
        [
            "the checkpoint holds buffers that the model computes itself, with other values; the model is as "
            "it was before:",
            *problems[:3],
            *more,
            f"set the model up as the checkpoint was trained; --accept {ACCEPT} "
            f"(decisions=['accept={ACCEPT}']) keeps the model's own values",
        ]
    )
