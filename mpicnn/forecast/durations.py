"""How long each operation keeps the device of a rank busy, from what devices can do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

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
from mpicnn.forecast.cost import Counter, Work

Times = NDArray[np.float64]

UPDATE_PASSES = 5
"""Over a parameter: it, its gradient and its momentum are read, it and its momentum written."""


def durations(program: GlobalProgram, rates: Mapping[str, Times], itemsize: int) -> list[Times]:
    """Return the seconds of every operation, and of the update behind the last: (grid) each.

    `rates` are figures of `machine.Device` for each place of the grid. A contraction takes its FLOP
    and its bytes one after the other, any other layer its bytes.
    """
    rated = Rated(program, rates, itemsize)
    found = [rated.operation(op) for op in program.ops]
    return [*found, rated.update(program.grads)]


class Rated:
    """Turn the work of a program's operations into seconds by rates, as `durations` does."""

    def __init__(self, program: GlobalProgram, rates: Mapping[str, Times], itemsize: int) -> None:
        self.program, self.rates = program, rates
        self.counter = Counter(program, itemsize)
        self.nothing = np.zeros(program.grid)

    def operation(self, op: Operation) -> Times:
        match op:
            case Forward():
                return self.layer(op.call, self.counter.forward(op.call))
            case Backward():
                return self.layer(op.call, self.counter.backward(op.call))
            case Loss() | Accumulate() | Store():
                return self.rates["start"]
            case Update():
                return self.update(op.grads)
        return self.nothing

    def layer(self, call: Call, work: Work) -> Times:
        """Return how long the work of a layer's pass takes."""
        rate = self.rates["convolution" if call.layer.convolves else "linear"]
        some = np.broadcast_to(self.counter.items(call.y_shape, call.y_layout), rate.shape) > 0
        seconds: Any = work.flops / rate + work.bytes_touched / self.rates["memory"]
        return np.asarray(seconds + some * self.rates["start"])

    def update(self, names: Collection[str]) -> Times:
        """Return how long parameters take to be changed."""
        held = [w for w in self.program.weights if w.name in names]
        items = sum(self.counter.items(w.param.shape, w.home) for w in held)
        touched = UPDATE_PASSES * items * self.counter.itemsize
        return np.asarray(touched / self.rates["memory"] + self.rates["start"])
