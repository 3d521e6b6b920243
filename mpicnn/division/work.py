"""The arithmetic and the items of a layer, counted once for forecasts, stages and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mpicnn.layers.base import Layer, Shape


@dataclass(frozen=True)
class LayerWork:
    """Count what one forward pass of a layer computes and touches.

    `multiply_adds` are those of a contraction (a multiply-add is 2 FLOP), `activations` the items
    of its input and output, `weights` those of its parameters and buffers.
    """

    multiply_adds: int
    activations: int
    weights: int

    def flops(self, times: int = 1) -> float:
        """Return the FLOP of so many products of this size: forward, dx and dw are one each."""
        return 2.0 * times * self.multiply_adds


def layer_work(
    layer: Layer, x_shape: Shape, y_shape: Shape, weights: Mapping[str, int]
) -> LayerWork:
    """Return the work of a layer on `x_shape` (n, …), given its weights' items by short name.

    Every weight of a contraction is used once for every output position of every example.
    """
    multiply_adds = 0
    if layer.kind == "contraction":
        multiply_adds = y_shape[0] * prod(y_shape[2:]) * weights["w"]
    return LayerWork(multiply_adds, prod(x_shape) + prod(y_shape), sum(weights.values()))


def whole_layer_work(layer: Layer, shape: Shape) -> LayerWork:
    """Return the work of an undivided layer on one example of `shape`."""
    weights = {name: prod(p.shape) for name, p in layer.params(shape).items()}
    return layer_work(layer, (1, *shape), (1, *layer.out_shape(shape)), weights)
