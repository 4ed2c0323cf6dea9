"""Reparametrised weights: what one side keeps as several tensors, the other as the plain weight.

The network computes the same after a fold, but a fold cannot be taken back, and some need a number that no
tensor holds. So they are found and offered here, and done once a person says so (``--accept fold``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from ckptdoctor.align.model import Question
from ckptdoctor.align.names import name_of
from ckptdoctor.align.roles import kind_of, values_of
from ckptdoctor.align.units import Leaf, Shape, Unit
from ckptdoctor.decisions import fact_of
from ckptdoctor.facts import Fact
from ckptdoctor.trees import ParamTree

if TYPE_CHECKING:
    from ckptdoctor.align.engine import State


@dataclass(frozen=True, slots=True)
class Fold:
    """One reparametrisation: what a question says, the fact that it needs, and other ways out of it."""

    words: str
    fact: str = ""
    usual: str = "N"  # what the fact usually is
    note: str = "the network computes the same in eval mode, but a fold cannot be taken back"
    others: tuple[tuple[str, str], ...] = ()


FOLDS: dict[str, Fold] = {
    "spectral_norm": Fold("under spectral_norm; in eval mode the plain weight is W / (u . W v)"),
    "pruning": Fold("with a pruning mask; the plain weight is their product"),
    "low-bit": Fold("in 8 bits with a scale beside; the plain weight is their product"),
    "lora": Fold(
        "with a LoRA adapter; the merged weight is W + B A alpha / rank",
        "lora_alpha",
        note="alpha is in adapter_config.json, in no tensor; the base weight alone is not what was trained",
        others=(("--drop '**.lora_A.**' --drop '**.lora_B.**'", "leave the adapter out"),),
    ),
    "batch_norm": Fold(
        "with a BatchNorm behind, which the model has folded into the layer",
        "batch_norm_eps",
        "1e-05",
        "eps is in no tensor (torch's default is 1e-05); right if each BatchNorm directly follows its layer",
    ),
    "zero_k_bias": Fold("as a query and a value bias; the fused bias has zeros for the key"),
    "weight_norm": Fold("as the plain weight; the model has a direction and its length (weight_norm)"),
}
SCALES = ("weight_scale_inv", "weight_scale", "scale_weight")
_TURNED = {"deconv", "transpose", "transposed", "convtranspose", "up_path"}  # outputs in dimension 1
BLOCK = 128  # rows and columns that share a scale in DeepSeek's files


def fold_sources(state: State, facts: Mapping[str, Fact]) -> None:
    """Bring reparametrised weights of the checkpoint to the form that the model has."""
    wanted = {role for u in state.targets for role in u.leaves}
    if not any(r.endswith("_orig") for r in wanted):
        kept = [u for u in state.sources if "weight_orig" in u.leaves or "bias_orig" in u.leaves]
        _spectral(kept)
        _pruned(kept)
    state.sources = _adapters(state.sources, facts)
    if "running_mean" not in wanted and not any("Transpose" in u.cls for u in state.targets):
        state.sources = _batch_norms(state.sources, facts)
    _zero_biases(state)
    _low_bit(state)


def unfold_targets(state: State) -> None:
    """A model's direction and length become one weight where the checkpoint has the plain one."""
    if any("weight_g" in u.leaves for u in state.sources):
        return
    for unit in state.targets:
        g, v = unit.leaves.get("weight_g"), unit.leaves.get("weight_v")
        if g is None or v is None or "weight" in unit.leaves:
            continue
        dim = norm_dim(g.shape, v.shape)
        if dim is not None:
            del unit.leaves["weight_g"], unit.leaves["weight_v"]
            parts = ((f"norm({dim})",), ())
            unit.leaves["weight"] = Leaf((*g.keys, *v.keys), v.shape, parts=parts, fold="weight_norm")
            unit.seal()


def norm_dim(g: Shape, v: Shape) -> int | None:
    """The dimension that keeps its own lengths; None when the shapes leave it open."""
    if len(g) != len(v):
        return None
    fitting = [d for d in range(len(v)) if g[d] == v[d] and all(n == 1 for i, n in enumerate(g) if i != d)]
    return fitting[0] if len(fitting) == 1 else None


def _spectral(units: Sequence[Unit]) -> None:
    """torch normalises along dimension 1 for transposed convolutions and 0 for all else."""
    found = [(u, dims) for u in units if (dims := _spectral_dims(u))]
    seen = {dims[0] for _, dims in found if len(dims) == 1}
    for unit, dims in found:
        dim = dims[0] if len(dims) == 1 else seen.copy().pop() if len(seen) == 1 else None
        if dim is not None:
            roles = ("weight_orig", "weight_u", _vector(unit))
            _join(unit, "weight", roles, f"spectral_norm({dim})", "spectral_norm")


def _vector(unit: Unit) -> str:
    return "weight_vec" if "weight_vec" in unit.leaves else "weight_v"


def _spectral_dims(unit: Unit) -> list[int]:
    w, u, v = (unit.leaves.get(r) for r in ("weight_orig", "weight_u", _vector(unit)))
    if w is None or u is None or v is None:
        return []
    return [
        d
        for d in range(min(2, len(w.shape)))
        if u.shape == (w.shape[d],) and v.shape == (prod(w.shape) // max(w.shape[d], 1),)
    ]


def _pruned(units: Sequence[Unit]) -> None:
    for unit in units:
        for role in ("weight", "bias"):
            if f"{role}_orig" in unit.leaves and f"{role}_mask" in unit.leaves:
                _join(unit, role, (f"{role}_orig", f"{role}_mask"), "mul", "pruning")


def _join(unit: Unit, role: str, roles: Sequence[str], op: str, fold: str) -> None:
    leaves = [unit.leaves.pop(r) for r in roles]
    keys = tuple(k for leaf in leaves for k in leaf.keys)
    unit.leaves[role] = Leaf(keys, leaves[0].shape, (op,), fold=fold)
    unit.seal()


def _adapters(units: list[Unit], facts: Mapping[str, Fact]) -> list[Unit]:
    """LoRA's A and B go into the weight that they belong to, when alpha is known."""
    if not any(".lora_" in u.path for u in units):
        return units
    alpha = facts.get("lora_alpha")
    by_path = {u.path: u for u in units}
    parts: dict[str, dict[str, list[Unit]]] = defaultdict(lambda: defaultdict(list))
    for unit in units:
        head, mark, _ = unit.path.partition(".lora_")
        if mark:
            parts[head][unit.path[len(head) + 6 : len(head) + 7]].append(unit)
    gone: set[int] = set()
    for path, found in parts.items():
        base = by_path.get(f"{path}.base_layer") or by_path.get(path)
        if base is None or set(found) != {"A", "B"}:
            continue
        if any(len(us) != 1 or set(us[0].leaves) != {"weight"} for us in found.values()):
            continue
        a, b = (found[n][0].leaves["weight"] for n in "AB")
        weight = base.leaves.get("weight")
        if weight is None or facts.get("use_dora") or not a.shape:
            continue
        scale = _scale(alpha.value, a.shape[0], facts) if alpha is not None else "lora_alpha/rank"
        op = f"lora({scale}{_turned(facts)})"
        base.leaves["weight"] = Leaf((*weight.keys, *a.keys, *b.keys), weight.shape, (op,), fold="lora")
        base.path = path
        base.name = name_of(path)
        base.seal()
        gone |= {found[n][0].index for n in "AB"}
    return [u for u in units if u.index not in gone]


def _scale(alpha: float, rank: int, facts: Mapping[str, Fact]) -> str:
    stable = facts.get("use_rslora")
    return repr(alpha / (rank**0.5 if stable is not None and stable.value else rank))


def _turned(facts: Mapping[str, Fact]) -> str:
    turned = facts.get("fan_in_fan_out")
    return ";transposed" if turned is not None and turned.value else ""


def _batch_norms(units: list[Unit], facts: Mapping[str, Fact]) -> list[Unit]:
    """Every BatchNorm goes into the one layer in front of it, or none does."""
    eps = facts.get("batch_norm_eps")
    norms = [u for u in units if "running_mean" in u.leaves]
    by_parent: dict[str, list[Unit]] = defaultdict(list)
    for unit in units if norms else ():
        by_parent[unit.path.rpartition(".")[0]].append(unit)
    hosts = {norm.index: _host(norm, by_parent[norm.path.rpartition(".")[0]]) for norm in norms}
    layers = [h.index for h in hosts.values() if h is not None]
    if not norms or len(set(layers)) != len(norms):
        return units
    for norm in norms:
        host = hosts[norm.index]
        assert host is not None  # counted above
        gamma, beta, mean, var = (
            norm.leaves[r].keys for r in ("weight", "bias", "running_mean", "running_var")
        )
        weight, bias = host.leaves["weight"], host.leaves.get("bias")
        op = f"({eps.value!r})" if eps is not None else "(batch_norm_eps)"
        host.leaves["weight"] = Leaf(
            (*weight.keys, *gamma, *var), weight.shape, (f"bn_weight{op}",), fold="batch_norm"
        )
        keys = (*(bias.keys if bias else ()), *gamma, *beta, *mean, *var)
        host.leaves["bias"] = Leaf(keys, norm.leaves["weight"].shape, (f"bn_bias{op}",), fold="batch_norm")
        host.seal()
    gone = {u.index for u in norms}
    return [u for u in units if u.index not in gone]


def _host(norm: Unit, siblings: Sequence[Unit]) -> Unit | None:
    """The layer with as many outputs in the same module: of the same number, the one before, the only one."""
    if not {"weight", "bias", "running_var"} <= set(norm.leaves):
        return None
    name = norm.path.rpartition(".")[2]
    size = norm.leaves["weight"].shape
    near = [
        u
        for u in siblings
        if kind_of(u) == "matrix"
        and not _TURNED & {t for segment in u.name.concepts for t in segment}
        and u.leaves["weight"].shape[:1] == size
    ]
    if name.isdigit():
        near = [u for u in near if u.path.rpartition(".")[2] == str(int(name) - 1)]
    elif len(near) > 1:
        near = [u for u in near if u.name.numbers == norm.name.numbers]
    return near[0] if len(near) == 1 else None


def _zero_biases(state: State) -> None:
    """``q_bias`` and ``v_bias`` beside a fused weight (BEiT, EVA) become its bias, with zeros for k."""
    if not any("bias" in u.leaves and values_of(u).get("part") == "qkv" for u in state.targets):
        return
    groups: dict[str, dict[str, Unit]] = defaultdict(dict)
    for unit in state.sources:
        part = values_of(unit).get("part")
        if isinstance(part, str):
            groups[unit.path.rpartition(".")[0]][part] = unit
    gone: set[int] = set()
    for parts in groups.values():
        fused, q, v = (parts.get(n) for n in ("qkv", "q", "v"))
        if fused is None or q is None or v is None or "bias" in fused.leaves or "k" in parts:
            continue
        if (
            set(q.leaves) != {"bias"}
            or set(v.leaves) != {"bias"}
            or q.leaves["bias"].shape != v.leaves["bias"].shape
        ):
            continue
        keys = (*q.leaves["bias"].keys, *v.leaves["bias"].keys)
        shape = (3 * q.leaves["bias"].shape[0],)
        fused.leaves["bias"] = Leaf(keys, shape, ("concat_zero(0,1)",), fold="zero_k_bias")
        fused.seal()
        gone |= {q.index, v.index}
    state.sources = [u for u in state.sources if u.index not in gone]


def _low_bit(state: State) -> None:
    """A weight in float8 with its scale beside becomes the plain weight where the model has that."""
    names = state.source_names
    if not any(map(_is_scale, names)) or any(map(_is_scale, state.target.specs)):
        return
    for unit in state.sources:
        weight = unit.leaves.get("weight")
        if weight is None or len(weight.keys) != 1 or weight.ops:
            continue
        scale = next((n for s in SCALES if (n := f"{unit.path}.{s}") in names), None)
        if scale is None or not _is_low(state.source, names[weight.keys[0]]):
            continue
        block = _block(weight.shape, state.source[names[scale]].shape)
        if block is not None:
            op = f"dequant({block})"
            unit.leaves["weight"] = Leaf((*weight.keys, scale), weight.shape, (op,), fold="low-bit")


def _is_scale(key: str) -> bool:
    return "scale" in key and key.rpartition(".")[2] in SCALES


def _is_low(tree: ParamTree, key: str) -> bool:
    return tree[key].dtype.startswith("float8")


def _block(weight: Shape, scale: Shape) -> int | None:
    """0 for one scale in all or one per row, the block's size for a grid of them."""
    if scale in ((), (1,), weight[:1], (*weight[:1], *[1] * (len(weight) - 1))):
        return 0
    return BLOCK if len(weight) == 2 and scale == tuple(-(-n // BLOCK) for n in weight) else None


def accepted(state: State, fold: str) -> bool:
    """Whether a person said that this may be folded: by name, or by giving the number that it needs."""
    from ckptdoctor.align import facts

    fact = FOLDS[fold].fact
    if not fact:
        return facts.accepted(state, "fold", fold)
    said = {fact_of(v).name for v in facts.of_kind(state.decisions, "value")}
    return fact in said or (fact in facts.known(state) and facts.accepted(state, "fold", fold))


def questions(state: State) -> Iterator[Question]:
    """One question for each kind of fold that was found and not decided."""
    from ckptdoctor.align import facts

    known = facts.known(state) if state.folds else {}
    for name, targets in state.folds.items():
        fold = FOLDS[name]
        open_ = tuple(k for k in targets if state.matches[k].status == "undecided")
        if open_:
            answer = (f"--accept {name}", "fold them")
            if fold.fact and fold.fact not in known:
                answer = (f"--value {fold.fact}={fold.usual}", "fold them with this")
            n = len(open_)
            are = "1 tensor of the model is" if n == 1 else f"{n} tensors of the model are"
            title = f"{are} kept in the checkpoint {fold.words}"
            yield Question("fold", title, open_, (), (fold.note,), (answer, *fold.others))
