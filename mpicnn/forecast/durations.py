"""How long each operation keeps the device of a rank busy, from what devices can do."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.operations import (
    Accumulate,
    Backward,
    Call,
    Forward,
    Loss,
    Operation,
    Store,
    Update,
)
from mpicnn.division.program import GlobalProgram
from mpicnn.forecast.cost import Counter
from mpicnn.forecast.machine import Rates

Times = NDArray[np.float64]

UPDATE_PASSES = 5
"""Over a parameter: it, its gradient and its momentum are read, it and its momentum written."""


def durations(program: GlobalProgram, rates: Rates, itemsize: int) -> list[Times]:
    """Return the seconds of every operation, and of the update behind the last: (grid) each.

    `rates` are those of each place of the grid. Where a layer was not measured, a contraction takes
    its FLOP and its bytes one after the other, any other layer its bytes.
    """
    rated = Rated(program, rates, itemsize)
    found = [rated.operation(op) for op in program.ops]
    return [*found, rated.update(program.grads)]


class Rated:
    """Turn the work of a program's operations into seconds by rates, as `durations` does."""

    def __init__(self, program: GlobalProgram, rates: Rates, itemsize: int) -> None:
        self.program, self.rates = program, rates
        self.counter = Counter(program, itemsize)
        self.grid, self.nothing = program.grid, np.zeros(program.grid)

    def operation(self, op: Operation) -> Times:
        match op:
            case Forward():
                return self.layer(op.call, 0)
            case Backward():
                return self.layer(op.call, 1)
            case Loss() | Accumulate() | Store():
                return self.rates.start
            case Update():
                return self.update(op.grads)
        return self.nothing

    def layer(self, call: Call, way: int) -> Times:
        """Return how long a layer's pass takes: `way` 0 is forward, 1 backward."""
        work = self.counter.backward(call) if way else self.counter.forward(call)
        some = np.broadcast_to(self.counter.items(call.y_shape, call.y_layout), self.grid) > 0
        if call.name in self.rates.layers:
            start, rate = self.rates.layers[call.name][way]
            amount = work.flops if call.layer.kind == "contraction" else work.bytes_touched
            return np.asarray(amount / rate + some * start)
        speed = self.rates.convolution if call.layer.convolves else self.rates.linear
        seconds = work.flops / speed + work.bytes_touched / self.rates.memory
        return np.asarray(seconds + some * self.rates.start)

    def update(self, names: Collection[str]) -> Times:
        """Return how long parameters take to be changed."""
        held = [w for w in self.program.weights if w.name in names]
        items = sum(self.counter.items(w.param.shape, w.home) for w in held)
        touched = UPDATE_PASSES * items * self.counter.itemsize
        return np.asarray(touched / self.rates.memory + self.rates.start)
