"""What every operation of a program computes, touches and sends, from shapes and moves alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from mpicnn.division.move import Hop, sum_sent
from mpicnn.division.operations import (
    Backward,
    Call,
    Forward,
    Operation,
    Send,
    Start,
    Sum,
)
from mpicnn.division.placement import Layout, Shape, Split, ranges
from mpicnn.division.program import GlobalProgram
from mpicnn.division.work import LayerWork, layer_work
from mpicnn.models.model import layer_of

_FLOAT64 = 8
"""The bytes of a number that layers sum over the batch."""

Amount = Any
"""A number for each rank, an array that broadcasts to the grid, or one number for all."""


@dataclass(frozen=True)
class Work:
    """Count what ranks do: FLOP (a multiply-add is 2), bytes touched in memory, bytes sent to other
    ranks, and collectives taken part in."""

    flops: Amount = 0.0
    bytes_touched: Amount = 0.0
    bytes_sent: Amount = 0.0
    messages: Amount = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.bytes_touched + other.bytes_touched,
            self.bytes_sent + other.bytes_sent,
            self.messages + other.messages,
        )


@dataclass(frozen=True)
class LayerCost:
    """Hold what a layer costs in one step; `held` are the items of its parameters.

    Amounts are arrays (ranks,) of the ranks of a stage.
    """

    name: str
    work: Work
    held: Amount


def step_costs(program: GlobalProgram, itemsize: int) -> list[LayerCost]:
    """Return what a training step costs every rank of a stage, layer by layer.

    Moves before a layer, the sums over its divided batch, and its parameters' journeys count for
    the layer. Bytes agree with what `Group.sent` counts in the same step.
    """
    counter = Counter(program, itemsize)
    found: dict[str, Work] = {}
    for op in program.ops:
        for name, work in counter.count(op):
            found[name] = found.get(name, Work()) + work
    held: dict[str, Amount] = {}
    for weight in program.weights:
        found.setdefault(weight.layer, Work())
        if not weight.buffer:
            items = counter.items(weight.param.shape, weight.home)
            held[weight.layer] = held.get(weight.layer, 0) + items

    def listed(amount: Amount) -> Amount:
        return np.broadcast_to(amount, program.grid).ravel()

    return [
        LayerCost(name, Work(*map(listed, vars(work).values())), listed(held.get(name, 0)))
        for name, work in found.items()
    ]


class Counter:
    """Count the work of a program's operations, for every rank of a stage."""

    def __init__(self, program: GlobalProgram, itemsize: int) -> None:
        self.grid, self.itemsize = program.grid, itemsize
        self.here = {w.name: self.items(w.param.shape, w.use) for w in program.weights}

    def _local(self, shape: Shape, layout: Layout) -> tuple[Amount, ...]:
        """Return every rank's shape of a tensor of whole `shape`, each dimension an amount."""
        found: list[Amount] = list(shape)
        for placement in layout:
            if isinstance(placement, Split):
                lo, hi = ranges(shape, layout, self.grid, placement.dim)
                found[placement.dim] = (hi - lo).astype(float)  # whose products do not overflow
        return tuple(found)

    def items(self, shape: Shape, layout: Layout) -> Amount:
        """Return how many items of a tensor every rank has."""
        return prod(self._local(shape, layout))

    def count(self, op: Operation) -> Iterator[tuple[str, Work]]:
        """Yield the layers that an operation works for, and what it does for them."""
        match op:
            case Forward():
                yield op.call.name, self.forward(op.call) + self.batch_sums(op.call, 0)
            case Backward():
                sums = self.batch_sums(op.call, 1) if op.call.need_dx else Work()
                yield op.call.name, self.backward(op.call) + sums
            case Start():
                yield op.name, self.hop(op.hop)
            case Send():
                sent = self.items(op.shape, op.layout) * self.itemsize
                yield op.name, Work(bytes_sent=sent, messages=1)
            case Sum():
                ranks = prod(self.grid[axis] for axis in op.axes)
                for at, name in enumerate(op.names):
                    sent = sum_sent(self.here[name] * self.itemsize, ranks)
                    yield layer_of(name), Work(bytes_sent=sent, messages=int(not at))

    def hop(self, hop: Hop) -> Work:
        """Return what a hop sends, seen from every place along the axes that split the tensor."""
        ranks, axis = self.grid[hop.axis], hop.axis
        divided = (isinstance(placement, Split) for placement in hop.others)
        across = [n if split else 1 for n, split in zip(self.grid, divided, strict=True)]
        messages, sent = np.zeros(across, int), np.zeros((*across, ranks))
        for place in np.ndindex(*across):
            here = hop.at(place)
            messages[place] = not here.move.local
            sent[place] = here.move.items_sent(here.shape, ranks) * self.itemsize
        return Work(bytes_sent=sent.swapaxes(axis, -1)[..., 0], messages=messages)

    def _everywhere(self, call: Call) -> Call:
        """Return a call whose shapes are amounts."""
        fed = zip(call.x_shapes, call.x_layouts, strict=True)
        return call._replace(
            x_shapes=tuple(self._local(shape, layout) for shape, layout in fed),
            y_shape=self._local(call.y_shape, call.y_layout),
        )

    def _once(self, call: Call) -> LayerWork:
        weights = {short: self.here[name] for short, name in call.weights.items()}
        return layer_work(call.layer, call.x_shapes, call.y_shape, weights)

    def forward(self, whole: Call) -> Work:
        """Return what a layer computes and touches forward, without its sums over the batch."""
        call = self._everywhere(whole)
        once = self._once(call)
        passes = 0 if call.joined and call.layer.kind != "contraction" else 1
        touched = (passes * once.activations + once.weights) * self.itemsize
        return Work(once.flops(), touched)

    def backward(self, whole: Call) -> Work:
        """Return what a layer computes and touches backward, without its sums over the batch."""
        call = self._everywhere(whole)
        once = self._once(call)
        touched = (once.activations + (2 - call.frozen) * once.weights) * self.itemsize
        return Work(once.flops((not call.frozen) + call.need_dx), touched)

    def batch_sums(self, whole: Call, way: int) -> Work:
        """Return what the layer sums over the batch on the way forward (0) or back (1)."""
        call = self._everywhere(whole)  # a rank sums the channels that it has
        lengths = call.batch_sums[way]
        work = Work()
        for length, axis in product(lengths, call.sum_axes):
            sent = sum_sent(length * _FLOAT64, self.grid[axis])
            # by the ranks that do not leave the layer to others
            places = np.indices(self.grid)
            busy = np.prod([places[axis] == rank for axis, rank in call.owners], axis=0)
            work += Work(bytes_sent=sent * busy, messages=busy)
        return work
