"""What devices and links can do: the machine for which a step is forecast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True)
class Machine:
    """Describe the device of every rank, the number of its host, and the links.

    `inside` joins the ranks of a host, `between` the hosts: each of these has one link, which all
    its ranks share.
    """

    devices: tuple[Device, ...]
    hosts: tuple[int, ...]
    inside: Link
    between: Link

    def rate(self, name: str) -> NDArray[np.float64]:
        """Return one figure of every rank's device: (ranks,)."""
        return self._rates[name]

    @cached_property
    def _rates(self) -> dict[str, NDArray[np.float64]]:
        return {name: np.array([getattr(d, name) for d in self.devices]) for name in RATES}
