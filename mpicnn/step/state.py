"""What training changes, as one rank holds it: parameters, velocities (momentum), buffers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from mpicnn.division.placement import region
from mpicnn.division.program import WeightLayout
from mpicnn.ops.interface import Array, Backend
from mpicnn.step.initial import initial_rows

Arrays = dict[str, Array]


@dataclass
class State:
    """Hold this rank's part of parameters, velocities and buffers, by full name."""

    params: Arrays = field(default_factory=dict)
    velocity: Arrays = field(default_factory=dict)
    buffers: Arrays = field(default_factory=dict)

    def on(self, ops: Backend) -> State:
        """Return the state as arrays of a backend, copied only to another memory."""
        copies = ({name: ops.upload(a) for name, a in part.items()} for part in vars(self).values())
        return State(*copies)


def initial_state(
    weights: Iterable[WeightLayout], coords: Sequence[int], seed: int, dtype: DTypeLike
) -> State:
    """Return the state at the start of a run.

    Every rank draws its own rows of every parameter only; they do not depend on the division.
    """
    state = State()
    for weight in weights:
        first, *others = region(weight.param.shape, weight.home, coords)
        rows = initial_rows(weight.param, seed, weight.name, first, dtype)
        value = np.ascontiguousarray(rows[(slice(None), *(slice(*o) for o in others))])
        if weight.buffer:
            state.buffers[weight.name] = value
        else:
            state.params[weight.name] = value
            state.velocity[weight.name] = np.zeros_like(value)
    return state
