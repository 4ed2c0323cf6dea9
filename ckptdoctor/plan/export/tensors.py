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
            state = [_one(op.op, [part], [shape]) for part, shape in zip(state, before, strict=True)]
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


def _rope(op: Any, shape: Shape) -> str:
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
    "rope": _unary(_rope),
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
