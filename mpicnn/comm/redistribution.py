"""Begin the redistributions of `mpicnn.division.move`: a collective each, or none."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from types import ModuleType

from mpicnn.comm.mesh import Group
from mpicnn.comm.pending import Pending
from mpicnn.division.move import Move
from mpicnn.division.placement import (
    Box,
    Partial,
    Replicated,
    Shape,
    Split,
    are_rows,
    box_shape,
    intersect,
    slices,
    volume,
)
from mpicnn.ops.interface import Array


def redistribute(group: Group, move: Move, x: Array, shape: Shape) -> Pending:
    """Begin to move the local array `x`; return a handle whose `wait()` gives the result.

    `shape` is the tensor's shape as seen along the group's axis: whole in a dimension that the
    axis splits, local in a dimension that only another axis splits. All ranks of `group` must call
    in the same order. `x` must stay unchanged until the move has ended.
    """
    return _TABLE[type(move.src), type(move.dst)](move, group, x, shape)


def _done(y: Array) -> Pending:
    return Pending.done(y)


def _same(move: Move, group: Group, x: Array, shape: Shape) -> Pending:
    return _done(x)


def _slice(move: Move, group: Group, x: Array, shape: Shape) -> Pending:
    whole = move.src.box(shape, group.rank)
    return _done(x[slices(move.dst.box(shape, group.rank), whole)])


def _keep_on_first(move: Move, group: Group, x: Array, shape: Shape) -> Pending:
    return _done(x if group.rank == 0 else group.xp.zeros_like(x))


def _pad(move: Move, group: Group, x: Array, shape: Shape) -> Pending:
    mine = move.src.box(shape, group.rank)
    y = group.xp.zeros(shape, x.dtype)
    y[slices(mine, move.dst.box(shape, group.rank))] = x
    return _done(y)


def _gather(move: Move, group: Group, x: Array, shape: Shape) -> Pending:
    boxes = [move.src.box(shape, r) for r in range(group.size)]
    counts = [volume(box) for box in boxes]
    whole = move.dst.box(shape, group.rank)
    flat = group.xp.empty(prod(shape), x.dtype)
    send = group.flat(x)
    request = group.allgather(send, flat, counts)
    return group.engine.add(request, lambda: _unpack(group.xp, flat, boxes, whole), send)


def _exchange(move: Move, group: Group, x: Array, shape: Shape) -> Pending:
    if move.src == move.dst:
        return _done(x)
    mine, goal = move.src.box(shape, group.rank), move.dst.box(shape, group.rank)
    outgoing = [intersect(mine, move.dst.box(shape, r)) for r in range(group.size)]
    incoming = [intersect(move.src.box(shape, r), goal) for r in range(group.size)]
    send = _pack(group, x, outgoing, mine)
    flat = group.xp.empty(volume(goal), x.dtype)
    request = group.alltoall(
        send, [volume(b) for b in outgoing], flat, [volume(b) for b in incoming]
    )
    return group.engine.add(request, lambda: _unpack(group.xp, flat, incoming, goal), send)


def _sum(move: Move, group: Group, x: Array, shape: Shape) -> Pending:
    # the sum is in place, so that either way this is a copy
    total = group.flat(x.copy() if x.flags.c_contiguous else x)
    request = group.allreduce(total)
    return group.engine.add(request, lambda: total.reshape(shape))


def _sum_and_split(move: Move, group: Group, x: Array, shape: Shape) -> Pending:
    whole = move.src.box(shape, group.rank)
    boxes = [move.dst.box(shape, r) for r in range(group.size)]
    send = _pack(group, x, boxes, whole)
    mine = group.xp.empty(box_shape(boxes[group.rank]), x.dtype)
    request = group.reduce_scatter(send, mine.reshape(-1), [volume(b) for b in boxes])
    return group.engine.add(request, lambda: mine, send)


_Start = Callable[[Move, Group, Array, Shape], Pending]
_TABLE: dict[tuple[type, type], _Start] = {
    (Replicated, Replicated): _same,
    (Replicated, Split): _slice,
    (Replicated, Partial): _keep_on_first,
    (Split, Replicated): _gather,
    (Split, Split): _exchange,
    (Split, Partial): _pad,
    (Partial, Replicated): _sum,
    (Partial, Split): _sum_and_split,
    (Partial, Partial): _same,
}


def _pack(group: Group, x: Array, boxes: list[Box], origin: Box) -> Array:
    """Lay boxes of `x` one after another in a flat array: a view where they lie so already."""
    if are_rows(boxes, origin):
        return group.flat(x)
    return group.xp.concatenate([group.flat(x[slices(box, origin)]) for box in boxes])


def _unpack(xp: ModuleType, flat: Array, boxes: list[Box], goal: Box) -> Array:
    """Undo `_pack`: assemble the box `goal` from the boxes that follow one another in `flat`."""
    if are_rows(boxes, goal):
        return flat.reshape(box_shape(goal))
    y = xp.empty(box_shape(goal), flat.dtype)
    at = 0
    for box in boxes:
        size = volume(box)
        y[slices(box, goal)] = flat[at : at + size].reshape(box_shape(box))
        at += size
    return y
