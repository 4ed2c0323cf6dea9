"""Whether several chains together take a whole source apart, and how to put it together again."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdoctor.errors import PlanError
from ckptdoctor.ops.attention import ChunkZero, ConcatZero
from ckptdoctor.ops.base import Op, Shape, Unary
from ckptdoctor.ops.chain import Chain
from ckptdoctor.ops.each import Each
from ckptdoctor.ops.pack import Chunk, Concat, Select, Slice, Stack


def covers(chains: Sequence[Chain], shape: Shape) -> bool:
    """Whether chains that all read one source of this shape use each of its values exactly once.

    One lossless chain does; so do ``chunk(0,0,3)``, ``chunk(0,1,3)``, ``chunk(0,2,3)`` together, whatever is
    done to the parts afterwards, as long as that is lossless. What is not proved is ``False``.
    """
    try:
        _split(chains, shape)
    except PlanError:
        return False
    return True


def rejoin(chains: Sequence[Chain], shape: Shape) -> tuple[tuple[int, ...], Chain]:
    """``(order, chain)``: ``chain`` on the chains' results, taken in ``order``, is the one source again.

    Raises :class:`PlanError` when the chains do not cover the source, or when their parts went different
    ways afterwards (the op language has one word for all sources of a join).
    """
    if len(chains) == 1:
        return (0,), chains[0].inverse([shape])[0]
    at, order, join = _split(chains, shape)
    tails = {Chain(chain.ops[at + 1 :]).inverse([chain.states([shape])[at + 1][0]])[0] for chain in chains}
    if len(tails) != 1:
        raise PlanError(
            "the parts of one source were changed in different ways, so no single chain joins them"
        )
    each = tuple(Each(op) for op in tails.pop().ops if isinstance(op, Unary))
    (head,) = Chain(chains[0].ops[:at]).inverse([shape])
    return order, Chain((*each, join, *head.ops))


def _split(chains: Sequence[Chain], shape: Shape) -> tuple[int, tuple[int, ...], Op]:
    """Where the chains part, the order of the parts, and the op that joins them again."""
    if len(chains) == 1:
        chains[0].inverse([shape])
        return 0, (0,), Concat(0)
    at = next((i for i, op in enumerate(chains[0].ops) if op.partial), None)
    if at is None or any(len(c.ops) <= at or c.ops[:at] != chains[0].ops[:at] for c in chains):
        raise PlanError("the chains do not part at the same place")
    head = Chain(chains[0].ops[:at])
    head.inverse([shape])
    for chain in chains:
        Chain(chain.ops[at + 1 :]).inverse([chain.states([shape])[at + 1][0]])
    order, join = _pieces([c.ops[at] for c in chains], head.out_shape([shape]))
    return at, order, join


def _pieces(ops: Sequence[Op], shape: Shape) -> tuple[tuple[int, ...], Op]:
    if all(isinstance(op, ChunkZero) for op in ops):
        return _around_zero([op for op in ops if isinstance(op, ChunkZero)], shape)
    spans = [_span(op, shape) for op in ops]
    kinds = {(dim, gone) for dim, _, _, gone in spans}
    if len(kinds) != 1:
        raise PlanError("the parts are cut along different dimensions")
    dim, gone = kinds.pop()
    order = tuple(sorted(range(len(spans)), key=lambda i: spans[i][1]))
    end = 0
    for _, start, stop, _ in (spans[i] for i in order):
        if start != end:
            raise PlanError("the parts overlap, or leave a gap")
        end = stop
    if end != shape[dim]:
        raise PlanError("the parts leave a gap")
    return order, Stack(dim) if gone else Concat(dim)


def _around_zero(ops: Sequence[ChunkZero], shape: Shape) -> tuple[tuple[int, ...], Op]:
    """All parts but the one that is zero."""
    for op in ops:
        op.out_shapes([shape])
    kinds = {(op.dim % len(shape), op.n, op.zero) for op in ops}
    if len(kinds) != 1:
        raise PlanError("the parts are cut along different dimensions")
    dim, n, zero = kinds.pop()
    if sorted(op.i for op in ops) != [i for i in range(n) if i != zero]:
        raise PlanError("the parts overlap, or leave a gap")
    return tuple(sorted(range(len(ops)), key=lambda i: ops[i].i)), ConcatZero(dim, zero)


def _span(op: Op, shape: Shape) -> tuple[int, int, int, bool]:
    """Dimension, first and last + 1 of what a partial op takes, and whether the dimension disappears."""
    if not isinstance(op, Chunk | Slice | Select):
        raise PlanError(f"`{op}` is not a simple part")
    op.out_shapes([shape])
    dim = op.dim % len(shape)
    if isinstance(op, Chunk):
        size = shape[dim] // op.n
        return dim, op.i * size, (op.i + 1) * size, False
    if isinstance(op, Slice):
        return dim, op.start, op.stop, False
    return dim, op.i, op.i + 1, True
