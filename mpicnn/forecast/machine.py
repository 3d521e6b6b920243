"""What devices and links can do: the machine for which a step is forecast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Figures = NDArray[np.float64]

RATES = ("convolution", "linear", "memory", "start")
"""The figures of a device on which the time of an operation depends."""


@dataclass(frozen=True)
class Device:
    """Say how fast a device is.

    `convolution` and `linear` are its FLOP/s in convolutions and in fully connected layers (a
    multiply-add is 2), `memory` the bytes/s of passes over arrays, and `start` the seconds that a
    layer's pass takes at least.
    """

    convolution: float
    linear: float
    memory: float = inf
    start: float = 0.0


@dataclass(frozen=True)
class Link:
    """Say how messages travel: `latency` in s, `bandwidth` in bytes/s each way.

    `busy` is the part of a message's time that the cores of its ranks are busy with it: 1 in shared
    memory, where they copy, near 0 where an adapter does it.
    """

    latency: float = 0.0
    bandwidth: float = inf
    busy: float = 0.0

    def seconds(self, volume: Any, steps: float) -> Any:
        """Return how long messages of so many bytes take that follow each other in `steps`."""
        return steps * self.latency + volume / self.bandwidth


class PassRate(NamedTuple):
    """Say what a layer's pass was measured to take each rank: `start` s, and the rest at a `rate`.

    That is in FLOP/s for a contraction and in bytes/s for any other layer.
    """

    start: Figures
    rate: Figures


@dataclass(frozen=True)
class Rates:
    """Hold the figures of `Device` for every rank, and those measured of layers by their names.

    The figures of a layer are those of its forward and its backward pass.
    """

    convolution: Figures
    linear: Figures
    memory: Figures
    start: Figures
    layers: Mapping[str, tuple[PassRate, PassRate]] = field(default_factory=dict)

    def on(self, grid: tuple[int, ...], first: int = 0) -> Rates:
        """Return the figures of the ranks from `first` on that form a grid, in its shape."""
        here = slice(first, first + prod(grid))

        def part(figures: Figures) -> Figures:
            return figures[here].reshape(grid)

        found = {name: part(getattr(self, name)) for name in RATES}
        layers = {
            name: (PassRate(*map(part, there)), PassRate(*map(part, back)))
            for name, (there, back) in self.layers.items()
        }
        return Rates(**found, layers=layers)


@dataclass(frozen=True)
class Machine:
    """Describe the device of every rank, the number of its host, and the links.

    `inside` joins the ranks of a host, `between` the hosts: each of these has one link, which all
    its ranks share. `layers` are what was measured of layers on these very ranks, if anything was.
    """

    devices: tuple[Device, ...]
    hosts: tuple[int, ...]
    inside: Link
    between: Link
    layers: Mapping[str, tuple[PassRate, PassRate]] = field(default_factory=dict)

    @cached_property
    def rates(self) -> Rates:
        """Return the figures of all ranks: (ranks,) each."""
        found = {name: np.array([getattr(d, name) for d in self.devices]) for name in RATES}
        return Rates(**found, layers=self.layers)
