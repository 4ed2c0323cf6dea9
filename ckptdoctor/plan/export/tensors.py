"""The ops of a plan as expressions of plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ckptdoctor.errors import PlanError
from ckptdoctor.ops import Op, Shape, parse_chain
from ckptdoctor.ops.each import Each

# Functions that some expressions call; a generated program holds those that it needs.
HELPERS = {
    "wide": '''\
def wide(tensor):
    """Half precision is computed in float32."""
    small = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.to(torch.float32) if small else tensor
''',
    "pick": '''\
def pick(tensor, dim, order):
    """These elements along a dimension, in this order."""
    return tensor.index_select(dim, torch.tensor(order, device=tensor.device))
''',
    "pad": '''\
def pad(tensor, dim, size):
    """Zeros behind the tensor along a dimension."""
    shape = list(tensor.shape)
    shape[dim] = size
    out = tensor.new_zeros(shape)
    out.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return out
''',
    "regroup": '''\
def regroup(tensor, groups, parts):
    """Rows of each group's parts -> all first parts, then all second ones ..."""
    unit = tensor.shape[0] // (groups * sum(parts))
    split = tensor.reshape(groups, sum(parts), unit, *tensor.shape[1:]).split(parts, 1)
    return torch.cat([part.flatten(0, 2) for part in split])
''',
    "interleave": '''\
def interleave(tensor, groups, parts):
    """All first parts, then all second ones ... -> the parts of each group."""
    unit = tensor.shape[0] // (groups * sum(parts))
    split = tensor.split([groups * part * unit for part in parts])
    rows = [x.reshape(groups, part * unit, *tensor.shape[1:]) for x, part in zip(split, parts)]
    return torch.cat(rows, 1).reshape(tensor.shape)
''',
    "flatten_order": '''\
def flatten_order(tensor, dim, axes, sizes, to):
    """A flattened dimension with its axes in another order."""
    split = tensor.reshape(*tensor.shape[:dim], *sizes, *tensor.shape[dim + 1 :])
    inner = [dim + axes.index(axis) for axis in to]
    order = [*range(dim), *inner, *range(dim + len(sizes), split.ndim)]
    return split.permute(order).reshape(tensor.shape)
''',
    "partial_rope": '''\
def partial_rope(tensor, heads, rows, split):
    """The first rows of every head between neighbouring and half-split rotary pairs."""
    rest = tensor.shape[1:]
    parts = tensor.reshape(heads, tensor.shape[0] // heads, *rest)
    turned = parts[:, :rows].reshape(heads, *split, *rest).transpose(1, 2).reshape(heads, rows, *rest)
    return torch.cat([turned, parts[:, rows:]], 1).reshape(tensor.shape)
''',
    "chunk_zero": '''\
def chunk_zero(tensor, dim, part, parts, zero):
    """One of equal parts; another one, for which there is no place, has to be zero."""
    size = tensor.shape[dim] // parts
    if bool((tensor.narrow(dim, zero * size, size) != 0).any()):
        raise ValueError("a part that has no place in the model is not zero")
    return tensor.narrow(dim, part * size, size)
''',
    "weight_norm": '''\
def weight_norm(g, v, dim):
    """v * g / |v|, the norm over all dimensions but one (all of them for -1)."""
    others = [d for d in range(v.ndim) if d != dim]
    full = wide(v)
    norm = torch.linalg.vector_norm(full, dim=others, keepdim=dim != -1) if others else full.abs()
    return (full * (wide(g) / norm)).to(v.dtype)
''',
}

Template = Callable[[Any, Sequence[str], Sequence[Shape]], str]


def expression(ops: Sequence[str], shapes: Sequence[Shape], sources: str = "t") -> str:
    """Python for a chain; ``sources`` is a list of tensors of these shapes.

    Raises :class:`PlanError` for an op that has no plain form here.
    """
    chain = parse_chain(ops)
    state = [f"{sources}[{i}]" for i in range(len(shapes))]
    for op, before in zip(chain.ops, chain.states(shapes), strict=False):
        if isinstance(op, Each):
            changed = op.only or tuple(range(len(state)))
            state = [
                _one(op.op, [part], [shape]) if i in changed else part
                for i, (part, shape) in enumerate(zip(state, before, strict=True))
            ]
        else:
            state = [_one(op, state, before)]
    return state[0]


def _one(op: Op, parts: Sequence[str], shapes: Sequence[Shape]) -> str:
    template = TEMPLATES.get(op.NAME)
    if template is None:
        raise PlanError(
            f"`{op}` has no form in plain torch here; keep the plan as TOML and use `ckptdoctor apply`"
        )
    return template(op, parts, shapes)


def _unary(text: Callable[[Any, Shape], str]) -> Template:
    """A method call on the one source; the shape before is known."""
    return lambda op, parts, shapes: parts[0] + text(op, tuple(shapes[0]))


def _blockperm(op: Any, shape: Shape) -> str:
    dim = op.dim % len(shape)
    blocks = (*shape[:dim], op.n, shape[dim] // op.n, *shape[dim + 1 :])
    return f".reshape({_tuple(blocks)}), {dim}, {list(op.order)})"


def _rope(op: Any, parts: Sequence[str], shapes: Sequence[Shape]) -> str:
    if op.rotary:
        half = op.rotary // 2
        split = (half, 2) if op.to == "half" else (2, half)
        return f"partial_rope({parts[0]}, {op.heads}, {op.rotary}, {split})"
    return parts[0] + _whole_rope(op, tuple(shapes[0]))


def _whole_rope(op: Any, shape: Shape) -> str:
    pairs = shape[0] // op.heads // 2
    split = (op.heads, pairs, 2) if op.to == "half" else (op.heads, 2, pairs)
    return f".reshape({_tuple((*split, *shape[1:]))}).transpose(1, 2).reshape({_tuple(shape)})"


def _chunk(op: Any, shape: Shape) -> str:
    size = shape[op.dim] // op.n
    return f".narrow({op.dim}, {op.i * size}, {size})"


def _joined(parts: Sequence[str], dim: int) -> str:
    return f"torch.cat([{', '.join(parts)}], {dim})"


def _with_zeros(op: Any, parts: Sequence[str], shapes: Sequence[Shape]) -> str:
    every = list(parts)
    every.insert(op.at, f"torch.zeros_like({parts[0]})")
    return _joined(every, op.dim)


def _tuple(sizes: Sequence[int]) -> str:
    return repr(tuple(sizes))


TEMPLATES: dict[str, Template] = {
    "copy": _unary(lambda op, shape: ""),
    "transpose": _unary(lambda op, shape: f".transpose({op.a}, {op.b})"),
    "permute": _unary(lambda op, shape: f".permute({_tuple(op.order)})"),
    "reshape": _unary(lambda op, shape: f".reshape({_tuple(op.shape(shape))})"),
    "squeeze": _unary(lambda op, shape: f".squeeze({op.dim})"),
    "unsqueeze": _unary(lambda op, shape: f".unsqueeze({op.dim})"),
    "blockperm": lambda op, parts, shapes: (
        f"pick({parts[0]}{_blockperm(op, tuple(shapes[0]))}.reshape({_tuple(shapes[0])})"
    ),
    "rope": _rope,
    "regroup": lambda op, parts, shapes: f"regroup({parts[0]}, {op.groups}, {list(op.parts)})",
    "interleave": lambda op, parts, shapes: f"interleave({parts[0]}, {op.groups}, {list(op.parts)})",
    "flatten_order": lambda op, parts, shapes: (
        f"flatten_order({parts[0]}, {op.dim % len(shapes[0])}, {op.axes!r}, {list(op.sizes)}, {op.to!r})"
    ),
    "chunk_zero": lambda op, parts, shapes: f"chunk_zero({parts[0]}, {op.dim}, {op.i}, {op.n}, {op.zero})",
    "as_real": lambda op, parts, shapes: f"torch.view_as_real({parts[0]}.resolve_conj())",
    "as_complex": lambda op, parts, shapes: f"torch.view_as_complex({parts[0]}.contiguous())",
    "chunk": _unary(_chunk),
    "slice": _unary(lambda op, shape: f".narrow({op.dim}, {op.start}, {op.stop - op.start})"),
    "select": _unary(lambda op, shape: f".select({op.dim}, {op.i})"),
    "take": lambda op, parts, shapes: f"pick({parts[0]}, {op.dim}, {list(op.rows)})",
    "pad": lambda op, parts, shapes: f"pad({parts[0]}, {op.dim}, {op.size})",
    "cast": _unary(lambda op, shape: f".to(torch.{op.to})"),
    "add": lambda op, parts, shapes: f"(wide({parts[0]}) + {op.value!r}).to({parts[0]}.dtype)",
    "sumdim": lambda op, parts, shapes: f"wide({parts[0]}).sum({op.dim}, keepdim=True).to({parts[0]}.dtype)",
    "concat": lambda op, parts, shapes: _joined(parts, op.dim),
    "stack": lambda op, parts, shapes: _joined([f"{p}.unsqueeze({op.dim})" for p in parts], op.dim),
    "concat_zero": _with_zeros,
    "weight_norm": lambda op, parts, shapes: f"weight_norm({parts[0]}, {parts[1]}, {op.dim})",
    "mul": lambda op, parts, shapes: f"({' * '.join(parts)})",
}
