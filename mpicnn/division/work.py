"""The arithmetic and the items of a layer, counted once for forecasts, stages and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

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
    layer: Layer, x_shapes: Sequence[Shape], y_shape: Shape, weights: Mapping[str, int]
) -> LayerWork:
    """Return the work of a layer on inputs of `x_shapes` (n, …), given its weights' items by short
    name.

    Every weight of a contraction is used once for every output position of every example.
    """
    multiply_adds = 0
    if layer.kind == "contraction":
        multiply_adds = y_shape[0] * prod(y_shape[2:]) * weights["w"]
    activations = sum(map(prod, x_shapes)) + prod(y_shape)
    return LayerWork(multiply_adds, activations, sum(weights.values()))


def whole_layer_work(layer: Layer, fed: Any) -> LayerWork:
    """Return the work of an undivided layer on one example, of the shape in `Model.fed`."""
    weights = {name: prod(p.shape) for name, p in layer.params(fed).items()}
    shapes = fed if layer.joins else (fed,)
    examples = [(1, *shape) for shape in shapes]
    return layer_work(layer, examples, (1, *layer.out_shape(fed)), weights)
