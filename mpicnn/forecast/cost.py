"""What every operation of a program computes, touches and sends, from shapes and moves alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from mpicnn.division.move import SUM
from mpicnn.division.operations import (
    Backward,
    Call,
    Forward,
    Hop,
    Operation,
    Send,
    Start,
    Sum,
)
from mpicnn.division.placement import local_shape
from mpicnn.division.program import Program
from mpicnn.division.work import LayerWork, layer_work

_FLOAT64 = 8
"""The bytes of a number that layers sum over the batch."""


@dataclass(frozen=True)
class Work:
    """Count what one rank does: FLOP (a multiply-add is 2), bytes touched in memory, bytes sent to
    other ranks, and collectives taken part in."""

    flops: float = 0.0
    bytes_touched: float = 0.0
    bytes_sent: float = 0.0
    messages: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.bytes_touched + other.bytes_touched,
            self.bytes_sent + other.bytes_sent,
            self.messages + other.messages,
        )


@dataclass(frozen=True)
class LayerCost:
    """Hold what a layer costs one rank in one step; `held` are the items of its parameters here."""

    name: str
    work: Work
    held: int


def step_costs(
    program: Program, grid: Sequence[int], coords: Sequence[int], itemsize: int
) -> list[LayerCost]:
    """Return the cost of a training step, layer by layer, for the rank at `coords`.

    Moves before a layer, the sums over its divided batch, and its parameters' journeys count for
    the layer. Bytes agree with what `Group.sent` counts in the same step.
    """
    counter = _Counter(program, tuple(grid), tuple(coords), itemsize)
    found: dict[str, Work] = {}
    for op in program.ops:
        for name, work in counter.count(op):
            found[name] = found.get(name, Work()) + work
    held: dict[str, int] = {}
    for weight in program.weights:
        found.setdefault(weight.layer, Work())
        if not weight.buffer:
            items = prod(local_shape(weight.param.shape, weight.home, coords))
            held[weight.layer] = held.get(weight.layer, 0) + items
    return [LayerCost(name, work, held.get(name, 0)) for name, work in found.items()]


class _Counter:
    def __init__(
        self, program: Program, grid: tuple[int, ...], coords: tuple[int, ...], itemsize: int
    ) -> None:
        self.grid, self.coords, self.itemsize = grid, coords, itemsize
        self.here = {
            w.name: prod(local_shape(w.param.shape, w.use, coords)) for w in program.weights
        }

    def count(self, op: Operation) -> Iterator[tuple[str, Work]]:
        """Yield the layers that an operation works for, and what it does for them."""
        match op:
            case Forward():
                yield op.call.name, self._forward(op.call)
            case Backward():
                yield op.call.name, self._backward(op.call)
            case Start():
                yield op.name, self._hop(op.hop)
            case Send():
                sent = prod(op.shape) * self.itemsize
                yield op.name, Work(bytes_sent=sent, messages=1)
            case Sum():
                ranks = prod(self.grid[axis] for axis in op.axes)
                for at, name in enumerate(op.names):
                    work = self._sum(self.here[name] * self.itemsize, ranks, messages=int(not at))
                    yield name.rsplit(".", 1)[0], work

    def _hop(self, hop: Hop) -> Work:
        items = hop.move.items_sent(hop.shape, self.grid[hop.axis], self.coords[hop.axis])
        return Work(bytes_sent=items * self.itemsize, messages=int(not hop.move.local))

    def _sum(self, size: int, ranks: int, messages: int = 1) -> Work:
        """Return the work of a sum of so many bytes."""
        return Work(bytes_sent=SUM.items_sent((size,), ranks, 0), messages=messages)

    def _once(self, call: Call) -> LayerWork:
        weights = {short: self.here[name] for short, name in call.weights.items()}
        return layer_work(call.layer, call.x_shapes, call.y_shape, weights)

    def _forward(self, call: Call) -> Work:
        once = self._once(call)
        passes = 0 if call.joined and call.layer.kind != "contraction" else 1
        work = Work(bytes_touched=(passes * once.activations + once.weights) * self.itemsize)
        if call.idle:
            return work
        return work + Work(flops=once.flops()) + self._sums(call, 0)

    def _backward(self, call: Call) -> Work:
        once = self._once(call)
        weights = (2 - call.frozen) * once.weights
        work = Work(bytes_touched=(once.activations + weights) * self.itemsize)
        if call.idle:
            return work
        work += Work(flops=once.flops((not call.frozen) + call.need_dx))
        return work + self._sums(call, 1) if call.need_dx else work

    def _sums(self, call: Call, way: int) -> Work:
        """Return what the layer sums over the batch on the way forward (0) or back (1)."""
        work = Work()
        for length in call.batch_sums[way]:
            for axis in call.sum_axes:
                work += self._sum(length * _FLOAT64, self.grid[axis])
        return work
