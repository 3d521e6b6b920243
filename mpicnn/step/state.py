"""What training changes, as one rank holds it: parameters, what optimisers keep, buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import DTypeLike

from mpicnn.division.placement import region
from mpicnn.division.program import WeightLayout
from mpicnn.ops.interface import Array, Backend
from mpicnn.step.initial import initial_rows

Arrays = dict[str, Array]

KEPT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sgd": ("velocity",), "lars": ("velocity",),
        "adamw": ("moment1", "moment2"), "lamb": ("moment1", "moment2"),
    }
)  # fmt: skip
"""What each optimiser keeps of every parameter from step to step."""


def kept_by(optimiser: str, ema: float) -> tuple[str, ...]:
    """Return which sections of a state are kept beside parameters and buffers."""
    return (*KEPT[optimiser], "ema") if ema else KEPT[optimiser]


@dataclass
class State:
    """Hold this rank's part of everything by full name.

    `velocity` is the momentum of gradients, `moment1` and `moment2` are the means of gradients and
    of their squares, `ema` is the running mean of parameters and buffers. What a run does not keep
    is empty, and nothing is kept of frozen layers beside their parameters and buffers.
    """

    params: Arrays = field(default_factory=dict)
    velocity: Arrays = field(default_factory=dict)
    buffers: Arrays = field(default_factory=dict)
    moment1: Arrays = field(default_factory=dict)
    moment2: Arrays = field(default_factory=dict)
    ema: Arrays = field(default_factory=dict)

    def on(self, ops: Backend) -> State:
        """Return the state as arrays of a backend, copied only to another memory."""
        copies = ({name: ops.upload(a) for name, a in part.items()} for part in vars(self).values())
        return State(*copies)

    @property
    def tested(self) -> State:
        """Return the parameters and buffers to answer with: the running mean where one is kept."""
        if not self.ema:
            return self
        params, buffers = (
            {n: self.ema.get(n, w) for n, w in part.items()} for part in (self.params, self.buffers)
        )
        return State(params, buffers=buffers)


def initial_state(
    weights: Iterable[WeightLayout],
    coords: Sequence[int],
    seed: int,
    dtype: DTypeLike,
    kept: Sequence[str] = KEPT["sgd"],
) -> State:
    """Return the state at the start of a run, with the sections `kept` (see `kept_by`).

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
        for section in () if weight.frozen else kept:
            if section == "ema":
                state.ema[weight.name] = value.copy()
            elif not weight.buffer:
                vars(state)[section][weight.name] = np.zeros_like(value)
    return state
