"""A step of Marques' method as a formula: equation 2, who is sent what, and table 4's speeds.

J. Marques, G. Falcao, L. A. Alexandre, "Distributed learning of CNNs on heterogeneous CPU/GPU
architectures", arXiv 1712.02546.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from mpicnn import models
from mpicnn.forecast.papers.fitting import Values, least_squares, rms
from mpicnn.layers import Conv
from mpicnn.models import Model
from mpicnn.models.zoo import CIFAR

Way = Literal["free", "equation 2", "per slave"]
"""What travels: nothing, equation 2 as it is printed whatever the number of slaves, or the inputs
once to each slave with each slave's kernels and outputs."""

WAYS: tuple[Way, ...] = get_args(Way)

NETWORKS = ("marques-50-500", "marques-150-800", "marques-300-1000", "marques-500-1500")
SMALLEST, LARGEST = NETWORKS[0], NETWORKS[-1]
BATCH = 1024
DOUBLE = 8
"""The bytes of a number: "all values transmitted are of type double"."""

OTHER = MappingProxyType({SMALLEST: 0.25, LARGEST: 0.13})
"""The part of a step on one CPU that is not convolution (5.3.1); of two networks it is not said."""

TABLE_4 = MappingProxyType(
    dict(zip(NETWORKS, ((1.40, 1.51, 1.56), (1.68, 1.93, 2.10), (1.69, 2.15, 2.33),
                        (1.98, 2.74, 3.28)), strict=True))
)  # fmt: skip
"""Best speed-ups with 2, 3 and 4 CPUs."""

TABLE_5 = MappingProxyType(
    dict(zip(NETWORKS, ((1.96, 2.45), (1.89, 2.23), (1.78, 2.09), (1.66, 2.00)), strict=True))
)
"""Best speed-ups with 2 and 3 GPUs."""


@lru_cache(maxsize=16)
def network(name: str, padded: bool = True) -> Model:
    """Return a network of section 5.2, with padding 2 or none: the paper leaves it open."""
    model = models.load(name, *CIFAR)
    if padded:
        return model
    layers = (
        (each, replace(layer, padding=0) if isinstance(layer, Conv) else layer)
        for each, layer in model.layers
    )
    return Model(name, model.input_shape, tuple(layers))


def short(name: str) -> str:
    """Return a network's kernels as the paper writes them: "500:1500"."""
    return ":".join(name.split("-")[1:])


@dataclass(frozen=True)
class Volume:
    """Count what equation 2 counts, in elements, and the FLOP of the same convolutions forward."""

    inputs: int
    kernels: int
    outputs: int
    flop: int

    @property
    def elements(self) -> int:
        """Return equation 2's `upload`."""
        return self.inputs + self.kernels + self.outputs


@lru_cache(maxsize=256)
def equation_2(model: Model, batch: int) -> Volume:
    """Return what a batch sends by equation 2: the sum over all convolutions."""
    inputs = kernels = outputs = flop = 0
    for (_, layer), fed in zip(model.layers, model.fed, strict=True):
        if isinstance(layer, Conv):
            out, w = layer.out_shape(fed), layer.params(fed)["w"].shape
            inputs += batch * prod(fed)
            kernels += prod(w)
            outputs += batch * prod(out)
            flop += 2 * batch * prod(w) * prod(out[1:])
    return Volume(inputs, kernels, outputs, flop)


@dataclass(frozen=True)
class Law:
    """Say what a step depends on.

    `speeds` are those of the slaves beside the master's, `ratio` the FLOP of a convolution that the
    master does while one element travels, and `other` the part of a network's step on the master
    alone that is not convolution.
    """

    way: Way
    speeds: tuple[float, ...]
    ratio: float
    other: Mapping[str, float]

    def speedup(self, name: str, slaves: Sequence[float], batch: int = BATCH) -> float:
        """Return the speed-up of the master and slaves of some speeds over the master alone."""
        return 1 / sum(self.parts(name, slaves, batch))

    def parts(
        self, name: str, slaves: Sequence[float], batch: int = BATCH
    ) -> tuple[float, float, float]:
        """Return the time of other layers, convolutions and communication, of a step on the master
        alone."""
        volume, other = equation_2(network(name), batch), self.other[name]
        whole = 1 + sum(slaves)
        sent = self._sent(volume, len(slaves), 1 - 1 / whole) if slaves else 0.0
        return other, (1 - other) / whole, (1 - other) * self.ratio * sent / volume.flop

    def _sent(self, volume: Volume, slaves: int, part: float) -> float:
        """Return the elements that travel where the slaves do a part of the convolutions."""
        match self.way:
            case "free":
                return 0.0
            case "equation 2":
                return volume.elements
        return slaves * volume.inputs + part * (volume.kernels + volume.outputs)

    def rate(self, bandwidth: float) -> float:
        """Return the FLOP/s of the master, forward alone, if the link carries so many bytes/s."""
        return self.ratio * bandwidth / DOUBLE

    def alone(self, name: str, bandwidth: float) -> float:
        """Return the seconds of a batch of 1,024 on the master alone, by the same reckoning."""
        flop = equation_2(network(name), BATCH).flop
        return flop / self.rate(bandwidth) / (1 - self.other[name])


def fit_table_4(way: Way) -> tuple[Law, float]:
    """Return the law that fits table 4's twelve figures best, and the rms of what is left.

    Six parameters: three speeds, the ratio, and the part of the other layers in the two networks of
    which the paper does not say it.
    """
    reported = np.log([TABLE_4[name] for name in NETWORKS])

    def law(at: Values) -> Law:
        speeds = tuple(np.exp(at[:3]).tolist())
        between = dict(zip(NETWORKS[1:3], at[4:].tolist(), strict=True))
        return Law(way, speeds, float(np.exp(at[3])), {**OTHER, **between})

    def residuals(at: Values) -> Values:
        return np.asarray((np.log(table_of(law(at), 3)) - reported).ravel())

    found = least_squares(residuals, np.array([0.5, 0.5, 0.5, np.log(500.0), 0.2, 0.2]))
    return law(found), rms(residuals(found))


def table_of(law: Law, slaves: int) -> list[list[float]]:
    """Return the speed-ups of all networks with 1 to so many of the law's slaves."""
    return [
        [law.speedup(name, law.speeds[:count]) for count in range(1, slaves + 1)]
        for name in NETWORKS
    ]


def speeds_if_free(name: str, other: float) -> list[float]:
    """Return the speeds beside the master's that table 4's figures say if links were free."""
    sums = [(1 - other) / (1 / speedup - other) for speedup in TABLE_4[name]]
    return np.diff([1.0, *sums]).tolist()
