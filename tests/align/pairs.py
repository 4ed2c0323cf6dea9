"""Short ways to write trees, and to ask what an alignment claims."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import Fill
from ckptdoctor.align import Alignment, align
from ckptdoctor.trees import ParamTree, TensorSpec

FIXTURES = Path(__file__).parents[2] / "fixtures"
Shapes = dict[str, tuple[int, ...]]
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def tree(*parts: Shapes, ordered: bool = True, ties: tuple[tuple[str, ...], ...] = ()) -> ParamTree:
    """A tree from shapes; keys of one group in ``ties`` are one tensor."""
    storage = {key: f"tie{i}" for i, group in enumerate(ties) for key in group}
    shapes = {key: shape for part in parts for key, shape in part.items()}
    specs = {
        key: TensorSpec(
            shape,
            "int64" if key.endswith("num_batches_tracked") else "float32",
            "buffer" if key.endswith(BUFFERS) else "param",
            storage=storage.get(key, ""),
        )
        for key, shape in shapes.items()
    }
    return ParamTree(specs, ordered=ordered)


def linear(path: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    """A Linear layer's tensors."""
    return {f"{path}.weight": (out, into)} | ({f"{path}.bias": (out,)} if bias else {})


def conv(path: str, out: int, into: int, size: int = 3) -> Shapes:
    """A convolution without bias."""
    return {f"{path}.weight": (out, into, size, size)}


def norm(path: str, width: int) -> Shapes:
    """A LayerNorm's tensors."""
    return {f"{path}.weight": (width,), f"{path}.bias": (width,)}


def batchnorm(path: str, width: int) -> Shapes:
    """A BatchNorm's tensors."""
    return norm(path, width) | {
        f"{path}.running_mean": (width,),
        f"{path}.running_var": (width,),
        f"{path}.num_batches_tracked": (),
    }


def claims(alignment: Alignment) -> dict[str, str]:
    """Model key -> what it is filled from, for all that is claimed safe: ``"a.weight | transpose(0,1)"``."""
    return {
        m.target: " | ".join([", ".join(m.sources), *m.ops])
        for m in alignment.matches.values()
        if m.status == "safe"
    }


def claimed(source: ParamTree, target: ParamTree) -> dict[str, str]:
    """:func:`claims` of the alignment of two trees."""
    return claims(align(source, target))


def fills(alignment: Alignment) -> dict[str, Fill]:
    """The same as data."""
    return {m.target: Fill(m.sources, m.ops) for m in alignment.matches.values() if m.status == "safe"}
