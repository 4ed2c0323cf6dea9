"""What happened to a state dict on its way into a file, as data, with the truth carried along."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Path = tuple[str, ...]


@dataclass
class Draft:
    """A state dict being changed. ``truth``: model key -> the checkpoint keys that it comes from."""

    state: dict[str, Any]
    truth: dict[str, tuple[str, ...]]
    values: dict[str, Tensor]  # model key -> what has to arrive, before the cast to the model's dtype
    linears: frozenset[str] = frozenset()  # model keys of linear layers' matrices
    near: set[str] = field(
        default_factory=set
    )  # model keys whose values are computed: equal but for rounding

    @classmethod
    def of(cls, state: Mapping[str, Any], linears: Collection[str] = ()) -> Draft:
        """The start: every key comes from itself."""
        values = {k: v.detach().clone() for k, v in state.items() if hasattr(v, "shape")}
        return cls(dict(state), {k: (k,) for k in values}, values, frozenset(linears))

    def rename(self, names: Mapping[str, str]) -> None:
        """New names for checkpoint keys; those not named keep theirs. They must stay different."""
        new = {names.get(k, k): v for k, v in self.state.items()}
        if len(new) < len(self.state):
            raise ValueError("two keys of one name")
        self.state = new
        self.truth = {t: tuple(names.get(s, s) for s in ss) for t, ss in self.truth.items()}

    def replace(self, gone: Sequence[str], made: Mapping[str, Any]) -> None:
        """Put ``made`` where the first of ``gone`` stands."""
        state: dict[str, Any] = {}
        for key, value in self.state.items():
            if key == gone[0]:
                state |= made
            if key not in gone:
                state[key] = value
        self.state = state


class Step(Protocol):
    """One thing that happened."""

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""


@dataclass(frozen=True)
class Prefix:
    """A wrapper's or a base model's name in front of every key."""

    text: str

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        draft.rename({k: f"{self.text}.{k}" for k in draft.state})


@dataclass(frozen=True)
class Relabel:
    """Nodes under other names: path -> the segments for its last one (none: a level less)."""

    labels: tuple[tuple[Path, Path], ...]

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        labels = dict(self.labels)
        names = {k: ".".join(relabelled(tuple(k.split(".")), labels)) for k in draft.state}
        if not all(names.values()) or any(n.startswith(".") for n in names.values()):
            raise ValueError("a key without a name")
        draft.rename(names)


def relabelled(path: Path, labels: Mapping[Path, Path]) -> Path:
    """A path with the labels of all its nodes."""
    new: list[str] = []
    for depth in range(1, len(path) + 1):
        new += labels.get(path[:depth], path[depth - 1 : depth])
    return tuple(new)


@dataclass(frozen=True)
class Order:
    """Keys in another order, by position."""

    turn: tuple[int, ...]

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        keys = list(draft.state)
        draft.state = {keys[i]: draft.state[keys[i]] for i in self.turn}


@dataclass(frozen=True)
class Fuse:
    """Several tensors concatenated in one, q, k and v in this order."""

    parts: tuple[str, ...]
    whole: str

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        import torch

        made = torch.cat([draft.state[p].detach() for p in self.parts])
        draft.replace(self.parts, {self.whole: made})
        gone: dict[Path, Path] = {(p,): (self.whole,) for p in self.parts}
        draft.truth = {t: gone.get(s, s) for t, s in draft.truth.items()}


@dataclass(frozen=True)
class Stack:
    """Tensors of each expert concatenated, and all experts in one tensor."""

    parts: tuple[tuple[str, ...], ...]
    whole: str

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        import torch

        made = torch.stack([torch.cat([draft.state[p].detach() for p in ps]) for ps in self.parts])
        gone = [p for ps in self.parts for p in ps]
        draft.replace(gone, {self.whole: made})
        new: dict[Path, Path] = {(p,): (self.whole,) for p in gone}
        draft.truth = {t: new.get(s, s) for t, s in draft.truth.items()}


@dataclass(frozen=True)
class Unstack:
    """The tensor of all experts as one for each, in equal parts."""

    whole: str
    parts: tuple[tuple[str, ...], ...]

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        each = draft.state[self.whole].detach()
        made = {n: m.clone() for t, ns in zip(each, self.parts, strict=True)
                for n, m in zip(ns, t.chunk(len(ns)), strict=True)}  # fmt: skip
        draft.replace((self.whole,), made)
        draft.truth = {t: tuple(made) if s == (self.whole,) else s for t, s in draft.truth.items()}


@dataclass(frozen=True)
class Names:
    """Single tensors under other names: the parts of a weight norm in the other form."""

    names: tuple[tuple[str, str], ...]

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        draft.rename(dict(self.names))


@dataclass(frozen=True)
class Folded:
    """A weight norm's size and direction as the plain weight that they mean (``torch._weight_norm``)."""

    size: str
    direction: str
    weight: str

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        g, v = draft.state[self.size].detach(), draft.state[self.direction].detach()
        norm = v.double().flatten(1).norm(dim=1).reshape(g.shape)
        plain = (v.double() * (g.double() / norm)).to(v.dtype)
        draft.replace((self.direction, self.size), {self.weight: plain})
        for target, sources in draft.truth.items():
            if sources in ((self.size,), (self.direction,)):
                # The same function: the weight is its own direction, and its norm the size.
                draft.truth[target] = (self.weight,)
                draft.values[target] = plain if sources == (self.direction,) else g.clone()
                draft.near.add(target)


@dataclass(frozen=True)
class Normed:
    """A plain weight as size and direction of a weight norm."""

    weight: str
    size: str
    direction: str

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        plain = draft.state[self.weight].detach()
        shape = (-1, *[1] * (plain.dim() - 1))
        g = plain.double().flatten(1).norm(dim=1).reshape(shape).to(plain.dtype)
        draft.replace((self.weight,), {self.size: g, self.direction: plain * 2})
        for target, sources in draft.truth.items():
            if sources == (self.weight,):
                draft.truth[target] = (self.size, self.direction)
                draft.near.add(target)


@dataclass(frozen=True)
class Split:
    """One tensor in equal parts."""

    whole: str
    parts: tuple[str, ...]

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        made = draft.state[self.whole].detach().chunk(len(self.parts))
        draft.replace((self.whole,), dict(zip(self.parts, (m.clone() for m in made), strict=True)))
        draft.truth = {t: self.parts if s == (self.whole,) else s for t, s in draft.truth.items()}


@dataclass(frozen=True)
class Transpose:
    """Matrices stored the other way round."""

    keys: tuple[str, ...]

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        for key in self.keys:
            draft.state[key] = draft.state[key].detach().t().contiguous()


@dataclass(frozen=True)
class Cast:
    """Floating-point tensors in another dtype; what is lost then is lost in the truth too."""

    dtype: str

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        import torch

        to = getattr(torch, self.dtype)
        for tensors in (draft.state, draft.values):
            made: dict[object, Any] = {}  # tied tensors stay tied
            for key, value in tensors.items():
                if hasattr(value, "is_floating_point") and value.is_floating_point():
                    where = (value.data_ptr(), value.shape, value.stride()) if value.numel() else key
                    if where not in made:
                        made[where] = value.detach().to(to)
                    tensors[key] = made[where]


@dataclass(frozen=True)
class Gone:
    """Tensors that the file does not have."""

    keys: tuple[str, ...]

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        for key in self.keys:
            del draft.state[key]
        lost = {t for t, ss in draft.truth.items() if set(ss) & set(self.keys)}
        draft.truth = {t: ss for t, ss in draft.truth.items() if t not in lost}
        draft.values = {t: v for t, v in draft.values.items() if t not in lost}


@dataclass(frozen=True)
class Added:
    """A tensor that belongs to nothing in the model."""

    key: str
    shape: tuple[int, ...]

    def apply(self, draft: Draft) -> None:
        """Change the draft in place."""
        import torch

        if self.key in draft.state:
            raise ValueError("two keys of one name")
        draft.state[self.key] = torch.full(self.shape, 77.0)


@dataclass(frozen=True)
class History:
    """Steps, and how the result was saved.

    ``envelope`` is the path of entries around the state dict; ``ema`` puts an averaged copy beside it.
    ``module``: not the state dict was saved but a module that has it, pickled whole, with its tensors only.
    ``device`` is the tag of the storages; ``form`` one of :data:`ckptdoctor.testing.files.FORMS`.
    """

    steps: tuple[Step, ...] = ()
    envelope: tuple[str, ...] = ()
    ema: str = ""
    device: str = ""
    form: str = "zip"
    protocol: int = 2
    metadata: bool = False
    module: bool = False

    def run(self, state: Mapping[str, Any]) -> Draft:
        """The state dict of the file, and the truth."""
        draft = Draft.of(state)
        for step in self.steps:
            step.apply(draft)
        return draft


@dataclass(frozen=True)
class Truth:
    """What a load must give: model key -> checkpoint keys, and -> value. Lost keys are in neither."""

    sources: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Tensor]
    ambiguous: bool = field(default=False)  # the file holds a second state dict that fits as well
    near: frozenset[str] = frozenset()  # model keys whose values are computed: equal but for rounding
